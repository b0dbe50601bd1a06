//! Damaged text is an error, never a panic; a damaged program is caught by a check.

use oarlock_simgpu::Module;

use crate::cutlass::{Gemm, gemm_ptx};
use crate::harness::HEADER;
use crate::nvcc::compile;

/// A text with every kind of statement.
fn text() -> String {
    format!(
        "{HEADER}.global .align 4 .b8 name[4] = {{1, 2, 3, 4}}; .const .u64 at = name;
        .func (.param .b32 r) f(.param .b32 x) {{ .reg .b32 %r<3>; ld.param.b32 %r1, [x]; st.param.b32 [r], %r1; ret; }}
        .visible .entry k(.param .u64 p, .param .align 8 .b8 s[16]) .maxntid 128, 1, 1 .minnctapersm 2 {{
        .reg .pred %p<4>; .reg .b16 %h<4>; .reg .b32 %r<16>; .reg .b64 %d<8>; .shared .align 16 .b8 m[256];
        ld.param.u64 %d1, [p+0]; mov.u32 %r1, %tid.x; setp.lt.and.s32 %p1|%p2, %r1, 4, !%p3; @!%p1 bra L;
        mov.b64 {{%r2, %r3}}, %d1; lop3.b32 %r4, %r1, %r2, %r3, 0xca; cvt.rn.f16.f32 %h1, %r1; prmt.b32 %r5, %r1, %r2, 0x5410;
        atom.global.cas.b32 %r6, [%d1], 1, 2; cp.async.cg.shared.global [m+16], [%d1], 16; cp.async.wait_group 0;
        shfl.sync.bfly.b32 %r7|%p3, %r1, 1, 31, -1; vote.sync.ballot.b32 %r8, !%p3, -1; bar.red.popc.u32 %r9, 0, %p1;
        mma.sync.aligned.m16n8k8.row.col.f32.f16.f16.f32 {{%r1,%r2,%r3,%r4}}, {{%r1,%r2}}, {{%r1}}, {{%r1,%r2,%r3,%r4}};
        ldmatrix.sync.aligned.m8n8.x2.shared.b16 {{%r1, %r2}}, [m]; T: .branchtargets L, M; brx.idx %r1, T;
        {{ .param .b32 a; .param .b32 b; st.param.b32 [a], 5; call.uni (b), f, (a); ld.param.b32 %r10, [b]; }}
        L: st.global.v2.u32 [%d1+-8], {{%r1, %r2}}; M: @%p1 exit; trap; }}\n"
    )
}

#[test]
fn damaged_text_never_panics() {
    let text = text();
    Module::parse(&text).unwrap();
    for end in 0..text.len() {
        let _ = Module::parse(&text[..end]);
    }
    // Each character taken out, each doubled, each word taken out.
    for at in 0..text.len() {
        let (before, after) = text.split_at(at);
        let _ = Module::parse(&format!("{before}{}", &after[1..]));
        let _ = Module::parse(&format!("{before}{}{after}", &after[..1]));
    }
    let words: Vec<&str> = text.split_inclusive([' ', ',', ';', '.']).collect();
    for skipped in 0..words.len() {
        let rest: String = words
            .iter()
            .enumerate()
            .filter(|(i, _)| *i != skipped)
            .map(|(_, word)| *word)
            .collect();
        let _ = Module::parse(&rest);
        let twice: String = words
            .iter()
            .enumerate()
            .map(|(i, word)| word.repeat(1 + usize::from(i == skipped)))
            .collect();
        let _ = Module::parse(&twice);
    }
}

/// Lines of a text that contain any of some words.
fn lines_with(ptx: &str, words: &[&str]) -> Vec<usize> {
    let has = |line: &str| words.iter().any(|word| line.contains(word));
    ptx.lines().enumerate().filter(|(_, line)| has(line)).map(|(index, _)| index).collect()
}

fn without_line(ptx: &str, line: usize) -> String {
    let lines: Vec<&str> =
        ptx.lines().enumerate().filter(|(index, _)| *index != line).map(|(_, line)| line).collect();
    lines.join("\n")
}

/// Every barrier and every wait of the GEMM's main loop matters, and each one's absence is noticed.
#[test]
fn a_gemm_without_a_barrier_is_caught() {
    let Some(ptx) = gemm_ptx("half_t") else { return };
    // The main loop is the part before the epilogue's last `wait_all`.
    let end = lines_with(&ptx, &["cp.async.wait_all"])[0];
    let lines = lines_with(&ptx, &["bar.sync", "cp.async.wait_group"]);
    let lines: Vec<usize> = lines.into_iter().filter(|&line| line < end).collect();
    assert!(lines.len() >= 4, "{lines:?}");
    for line in lines {
        let mutant = without_line(&ptx, line);
        let is_caught = (0..3).any(|seed| !Gemm::new(&mutant, seed).is_right(64, 64, 160));
        assert!(is_caught, "line {}: {}", line + 1, ptx.lines().nth(line).unwrap());
    }
}

/// The same for CUB's block sort.
#[test]
fn a_sort_without_a_barrier_is_caught() {
    let Some(ptx) = compile("cub_block.cu", &[]) else { return };
    let start = ptx.lines().position(|line| line.contains(".entry sort_pairs")).unwrap();
    let mut caught = 0;
    let lines: Vec<usize> =
        lines_with(&ptx, &["bar.sync"]).into_iter().filter(|&line| line > start).collect();
    for &line in &lines {
        let mutant = without_line(&ptx, line);
        caught += usize::from((0..3).any(|seed| !crate::cub::sorts(&mutant, seed)));
    }
    // One barrier stands between two uses of storage that the kernel does not repeat.
    assert!(caught + 1 >= lines.len(), "{caught} of {}", lines.len());
}
