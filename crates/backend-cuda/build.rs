//! Compiles `kernels/src/*.cu` where there is an nvcc, and lists what came out as a Rust table.
//!
//! nvcc is looked for in `<target>/cuda-toolkit` (where `cargo xtask cuda-toolkit` puts it), in
//! `CUDA_HOME` and in `PATH`. Without one the table is empty and everything else builds.

use std::fmt::Write as _;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode};
use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::{env, fs, thread};

/// Compute capabilities that are compiled for.
const ARCHITECTURES: [u32; 2] = [80, 90];

/// Multiplications and additions stay apart: the order and rounding of every operation is fixed in
/// the sources.
const NVCC_FLAGS: [&str; 8] = [
    "-std=c++17",
    "-O3",
    "-fmad=false",
    "-ftz=false",
    "-prec-div=true",
    "-prec-sqrt=true",
    "--expt-relaxed-constexpr",
    "-Werror=all-warnings",
];

/// Releases of nvcc before this one know other PTX.
const LEAST_RELEASE: (u32, u32) = (13, 0);

fn main() -> ExitCode {
    match build() {
        Ok(()) => ExitCode::SUCCESS,
        Err(message) => {
            eprintln!("{message}");
            ExitCode::FAILURE
        }
    }
}

fn build() -> Result<(), String> {
    let crate_dir = PathBuf::from(env::var_os("CARGO_MANIFEST_DIR").ok_or("no manifest folder")?);
    let out_dir = PathBuf::from(env::var_os("OUT_DIR").ok_or("no output folder")?);
    let kernels = crate_dir.join("../../kernels");
    println!("cargo::rerun-if-changed={}", kernels.join("include").display());
    println!("cargo::rerun-if-changed={}", kernels.join("src").display());
    println!("cargo::rerun-if-changed=build.rs");
    println!("cargo::rerun-if-env-changed=CUDA_HOME");
    println!("cargo::rerun-if-env-changed=PATH");
    let table = match find_nvcc(&out_dir) {
        Some((nvcc, (major, minor))) => {
            println!("cargo::rustc-env=OARLOCK_NVCC_RELEASE={}", major * 1000 + minor * 10);
            println!("cargo::rerun-if-changed={}", nvcc.display());
            println!("cargo::rustc-env=OARLOCK_NVCC={}", nvcc.display());
            let sources = sources(&kernels.join("src"))?;
            compile_all(&nvcc, &kernels.join("include"), &sources, &out_dir)?;
            table(&sources, &out_dir)?
        }
        None => table(&[], &out_dir)?,
    };
    fs::write(out_dir.join("modules.rs"), table).map_err(|error| error.to_string())
}

/// The target folder is the one that has this build's folder: `<target>/<profile>/build/<crate>/out`.
/// Where no toolkit is there yet, nothing is watched (cargo would run this script at every build for a
/// file that is missing); `cargo xtask cuda-toolkit` touches this file instead.
fn find_nvcc(out_dir: &Path) -> Option<(PathBuf, (u32, u32))> {
    let installed = out_dir
        .ancestors()
        .skip(3)
        .take(4)
        .map(|folder| folder.join("cuda-toolkit/nvidia/cu13/bin/nvcc"));
    let home = env::var_os("CUDA_HOME").map(|home| PathBuf::from(home).join("bin/nvcc"));
    let path = env::var_os("PATH").unwrap_or_default();
    let in_path: Vec<PathBuf> = env::split_paths(&path).map(|dir| dir.join("nvcc")).collect();
    let mut found = installed.chain(home).chain(in_path).filter(|nvcc| nvcc.is_file());
    found.find_map(|nvcc| match release(&nvcc) {
        Some(release) if release >= LEAST_RELEASE => Some((nvcc, release)),
        release => {
            println!(
                "cargo::warning={} is left alone: its release is {release:?}, {LEAST_RELEASE:?} is needed \
                 (`cargo xtask cuda-toolkit` installs one)",
                nvcc.display()
            );
            None
        }
    })
}

/// The release of a compiler: `… release 13.0, V13.0.88`.
fn release(nvcc: &Path) -> Option<(u32, u32)> {
    let output = Command::new(nvcc).arg("--version").output().ok()?;
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    let (_, rest) = text.split_once("release ")?;
    let mut numbers = rest.split(['.', ',']).map(|number| number.parse().ok());
    Some((numbers.next()??, numbers.next()??))
}

/// All `.cu` files, the largest first: those take longest.
fn sources(folder: &Path) -> Result<Vec<PathBuf>, String> {
    let entries = fs::read_dir(folder).map_err(|error| format!("{}: {error}", folder.display()))?;
    let mut sources: Vec<(u64, PathBuf)> = entries
        .flatten()
        .map(|entry| entry.path())
        .filter(|path| path.extension().is_some_and(|extension| extension == "cu"))
        .map(|path| (fs::metadata(&path).map_or(0, |file| file.len()), path))
        .collect();
    sources.sort();
    Ok(sources.into_iter().rev().map(|(_, path)| path).collect())
}

fn stem(path: &Path) -> String {
    path.file_stem().map(|stem| stem.to_string_lossy().into_owned()).unwrap_or_default()
}

fn output(out_dir: &Path, source: &Path, arch: u32, extension: &str) -> PathBuf {
    out_dir.join(format!("{}.sm_{arch}.{extension}", stem(source)))
}

/// One job for each file and architecture, as many at once as cargo allows.
fn compile_all(
    nvcc: &Path,
    include: &Path,
    sources: &[PathBuf],
    out_dir: &Path,
) -> Result<(), String> {
    let jobs: Vec<(&PathBuf, u32)> =
        sources.iter().flat_map(|source| ARCHITECTURES.map(|arch| (source, arch))).collect();
    let threads = env::var("NUM_JOBS").ok().and_then(|n| n.parse().ok()).unwrap_or(1_usize);
    let next = AtomicUsize::new(0);
    let failures = Mutex::new(String::new());
    thread::scope(|scope| {
        for _ in 0..threads.clamp(1, jobs.len().max(1)) {
            scope.spawn(|| {
                while let Some((source, arch)) = jobs.get(next.fetch_add(1, Ordering::Relaxed)) {
                    if let Err(message) = compile(nvcc, include, source, *arch, out_dir)
                        && let Ok(mut failures) = failures.lock()
                    {
                        failures.push_str(&message);
                    }
                }
            });
        }
    });
    let failures = failures.into_inner().map_err(|error| error.to_string())?;
    if failures.is_empty() { Ok(()) } else { Err(failures) }
}

/// PTX first, then machine code from it, so that the front end runs once.
fn compile(
    nvcc: &Path,
    include: &Path,
    source: &Path,
    arch: u32,
    out_dir: &Path,
) -> Result<(), String> {
    let ptx = output(out_dir, source, arch, "ptx");
    let cubin = output(out_dir, source, arch, "cubin");
    let mut front = Command::new(nvcc);
    front
        .arg("-ptx")
        .args(NVCC_FLAGS)
        .arg(format!("-arch=compute_{arch}"))
        .arg("-I")
        .arg(include)
        .arg("-o")
        .arg(&ptx)
        .arg(source);
    run(&mut front)?;
    let ptxas = nvcc.with_file_name("ptxas");
    let mut back = Command::new(ptxas);
    back.arg(format!("-arch=sm_{arch}")).args(["-O3", "-fmad=false", "-v", "-o"]);
    let report = run(back.arg(&cubin).arg(&ptx))?;
    // What `cargo xtask kernels` reads.
    let report_path = output(out_dir, source, arch, "ptxas.txt");
    fs::write(report_path, report).map_err(|error| error.to_string())
}

/// Runs a command to its end; its messages, or an error with them.
fn run(command: &mut Command) -> Result<String, String> {
    let output = command.output().map_err(|error| format!("{command:?}: {error}"))?;
    let text =
        [output.stdout, output.stderr].map(|part| String::from_utf8_lossy(&part).into_owned());
    let text = text.concat();
    if output.status.success() { Ok(text) } else { Err(format!("{command:?}:\n{text}\n")) }
}

/// Names of the entries of a PTX text.
fn entries(ptx: &str) -> Vec<&str> {
    ptx.lines()
        .filter_map(|line| line.trim().strip_prefix(".visible .entry "))
        .filter_map(|rest| rest.split('(').next())
        .collect()
}

fn table(sources: &[PathBuf], out_dir: &Path) -> Result<String, String> {
    let mut text = format!(
        "/// Whether kernels were compiled in.\npub const HAS_KERNELS: bool = {};\n\
         /// The compiled files of `kernels/src`, by name.\npub const MODULES: &[Module] = &[\n",
        !sources.is_empty()
    );
    let mut sources = sources.to_vec();
    sources.sort();
    for source in &sources {
        let ptx_path = output(out_dir, source, ARCHITECTURES[0], "ptx");
        let ptx = fs::read_to_string(&ptx_path).map_err(|error| error.to_string())?;
        let list = |extension: &str, macro_name: &str| {
            ARCHITECTURES.map(|arch| {
                let path = output(out_dir, source, arch, extension);
                format!("({arch}, {macro_name}!({:?})),", path.to_string_lossy())
            })
        };
        writeln!(
            text,
            "    Module {{ name: {:?}, entries: &{:?}, cubins: &[{}], ptx: &[{}] }},",
            stem(source),
            entries(&ptx),
            list("cubin", "include_bytes").concat(),
            list("ptx", "include_str").concat(),
        )
        .map_err(|error| error.to_string())?;
    }
    text.push_str("];\n");
    Ok(text)
}
