//! Gates on the machine code: what the compiler must not have done to the kernels.

use std::collections::BTreeMap;
use std::env;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::OnceLock;

use oarlock_backend_cuda::kernels::{HAS_KERNELS, MODULES};

/// One entry's instructions and labels, in order.
struct Function {
    name: String,
    arch: u32,
    lines: Vec<String>,
}

/// Every entry of every cubin, disassembled once for all tests; `None`, with a reason printed, where
/// the tools are missing and this is not CI.
fn functions() -> Option<&'static [Function]> {
    static FUNCTIONS: OnceLock<Option<Vec<Function>>> = OnceLock::new();
    FUNCTIONS.get_or_init(disassemble).as_deref()
}

fn disassemble() -> Option<Vec<Function>> {
    let Some(nvdisasm) = find_nvdisasm().filter(|_| HAS_KERNELS) else {
        let reason = "no kernels or no nvdisasm: run `cargo xtask cuda-toolkit`";
        assert!(env::var_os("CI").is_none(), "{reason}");
        eprintln!("skipped: {reason}");
        return None;
    };
    let dir = Path::new(env!("CARGO_TARGET_TMPDIR")).join("sass");
    fs::create_dir_all(&dir).expect("a folder of the tests");
    let mut all = Vec::new();
    for module in MODULES {
        for (arch, cubin) in module.cubins {
            let path = dir.join(format!("{}.sm_{arch}.cubin", module.name));
            fs::write(&path, cubin).expect("a file of the tests");
            let output =
                Command::new(&nvdisasm).arg("-c").arg(&path).output().expect("nvdisasm starts");
            assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
            let text = String::from_utf8(output.stdout).expect("text");
            let found = split(&text, *arch);
            assert_eq!(found.len(), module.entries.len(), "entries of {}", module.name);
            all.extend(found);
        }
    }
    Some(all)
}

fn find_nvdisasm() -> Option<PathBuf> {
    let beside = option_env!("OARLOCK_NVCC").map(|nvcc| Path::new(nvcc).with_file_name("nvdisasm"));
    let path = env::var_os("PATH").unwrap_or_default();
    let in_path = env::split_paths(&path).map(|dir| dir.join("nvdisasm"));
    beside.into_iter().chain(in_path).find(|path| path.is_file())
}

/// Cuts a disassembly at its `.text.NAME:` labels.
fn split(text: &str, arch: u32) -> Vec<Function> {
    let mut functions: Vec<Function> = Vec::new();
    for line in text.lines().map(str::trim) {
        if let Some(name) = line.strip_prefix(".text.").and_then(|rest| rest.strip_suffix(':')) {
            functions.push(Function { name: name.to_owned(), arch, lines: Vec::new() });
        } else if line.starts_with("//---") {
            // The next section.
            functions.push(Function { name: String::new(), arch, lines: Vec::new() });
        } else if let Some(function) = functions.last_mut() {
            let is_label = line.ends_with(':');
            let instruction = line.split_once("*/").map(|(_, rest)| rest.trim());
            if is_label {
                function.lines.push(line.to_owned());
            } else if let Some(instruction) = instruction.filter(|text| !text.is_empty()) {
                function.lines.push(instruction.to_owned());
            }
        }
    }
    functions.retain(|function| !function.name.is_empty());
    functions
}

impl Function {
    fn has(&self, word: &str) -> bool {
        self.lines.iter().any(|line| line.contains(word))
    }

    /// The instructions from a label to the last branch back to it, for every label that has one.
    fn loops(&self) -> Vec<&[String]> {
        let mut labels = BTreeMap::new();
        let mut ends = BTreeMap::new();
        for (at, line) in self.lines.iter().enumerate() {
            if let Some(label) = line.strip_suffix(':') {
                labels.insert(label, at);
            } else if line.contains("BRA")
                && let Some((_, rest)) = line.split_once("`(")
                && let Some((target, _)) = rest.split_once(')')
                && let Some(start) = labels.get(target)
            {
                ends.insert(*start, at);
            }
        }
        ends.into_iter().map(|(start, end)| &self.lines[start..=end]).collect()
    }
}

fn is_product(name: &str) -> bool {
    ["linear_", "experts_", "attention_"].iter().any(|start| name.starts_with(start))
        && name.contains("bf16")
        && !name.contains("join")
}

#[test]
fn nothing_is_spilled_and_no_local_memory_is_used() {
    let Some(functions) = functions() else { return };
    for function in functions {
        for word in ["LDL", "STL"] {
            assert!(!function.has(word), "{} for {}: {word}", function.name, function.arch);
        }
    }
}

#[test]
fn products_run_on_tensor_cores_and_load_16_bytes_at_once() {
    let Some(functions) = functions() else { return };
    let products: Vec<_> = functions.iter().filter(|f| is_product(&f.name)).collect();
    assert!(!products.is_empty(), "linear layers, experts and attention are there");
    for function in products {
        let name = format!("{} for {}", function.name, function.arch);
        let has = |lines: &[String], words: &[&str]| {
            lines.iter().any(|line| words.iter().all(|word| line.contains(word)))
        };
        let inner: Vec<_> =
            function.loops().into_iter().filter(|lines| has(lines, &["HMMA.16816"])).collect();
        assert!(!inner.is_empty(), "{name}: a loop with tensor-core instructions");
        assert!(
            inner.iter().any(|lines| has(lines, &["LDGSTS.", ".128"])),
            "{name}: 128-bit copies to shared memory beside the products"
        );
        let narrow = |line: &&String| line.contains("LDGSTS.") && !line.contains(".128");
        assert_eq!(function.lines.iter().find(narrow), None, "{name}: all copies have 128 bits");
    }
}

#[test]
fn products_have_no_f64_and_no_division() {
    let Some(functions) = functions() else { return };
    for function in functions.iter().filter(|f| is_product(&f.name)) {
        let name = format!("{} for {}", function.name, function.arch);
        for word in ["DADD", "DMUL", "DFMA", "__internal", "_div_", "_rcp_"] {
            assert!(!function.has(word), "{name}: {word}");
        }
        for lines in function.loops() {
            let is_inner = lines.iter().any(|line| line.contains("HMMA"));
            let slow = |line: &&String| line.contains("MUFU") || line.contains("I2F");
            assert_eq!(lines.iter().filter(|_| is_inner).find(slow), None, "{name}");
        }
    }
}

#[test]
fn loops_are_found() {
    let text = "//--- .text.f ---\n.text.f:\n/*0000*/ MOV R1, R2 ;\n.L_1:\n/*0010*/ HMMA.16816 R1 ;\n\
                /*0020*/ @P0 BRA `(.L_1) ;\n/*0030*/ EXIT ;\n";
    let functions = split(text, 80);
    assert_eq!(functions.len(), 1);
    let loops = functions[0].loops();
    assert_eq!(loops, [[".L_1:", "HMMA.16816 R1 ;", "@P0 BRA `(.L_1) ;"]]);
}

/// What a driver that compiles the PTX itself may do to it: contract or approximate nothing, since every
/// float operation names its rounding.
#[test]
fn ptx_leaves_the_driver_no_choice() {
    if !HAS_KERNELS {
        assert!(env::var_os("CI").is_none(), "no kernels: run `cargo xtask cuda-toolkit`");
        eprintln!("skipped: this build has no kernels; `cargo xtask cuda-toolkit` installs nvcc");
        return;
    }
    let mut arithmetic = 0;
    for module in MODULES {
        for (arch, ptx) in module.ptx {
            for (number, line) in ptx.lines().enumerate() {
                let words = line.trim_start().trim_start_matches(['{', ' ']);
                // Behind a predicate.
                let words = if words.starts_with('@') {
                    words.split_once(char::is_whitespace).map_or("", |(_, rest)| rest.trim_start())
                } else {
                    words
                };
                let name = words.split_whitespace().next().unwrap_or("");
                let is_arithmetic =
                    ["add.", "sub.", "mul.", "fma.", "mad.", "div.", "sqrt.", "rcp."]
                        .iter()
                        .any(|start| name.starts_with(start));
                let is_float = matches!(name.rsplit('.').next(), Some("f32" | "f64"));
                let place = format!("{} for {arch}, line {}: {line}", module.name, number + 1);
                assert!(!name.contains(".ftz") && !name.contains(".approx"), "{place}");
                assert!(!name.contains(".full"), "{place}");
                if is_arithmetic && is_float {
                    arithmetic += 1;
                    assert!(name.contains(".rn"), "{place}");
                }
            }
        }
    }
    assert!(arithmetic > 1000, "{arithmetic} float operations");
}
