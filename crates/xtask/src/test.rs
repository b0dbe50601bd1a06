//! `cargo xtask test`: what the tests need, then all of them.

use std::io::{self, BufRead as _, BufReader, Write};
use std::process::{Child, Command, Stdio};
use std::sync::mpsc::{self, RecvTimeoutError};
use std::thread;
use std::time::Duration;

use anyhow::{Context as _, bail};

use crate::step::{show, step, step_command};
use crate::workspace::Workspace;
use crate::{cuda, models, python};

/// What tests are of.
const TARGETS: [&str; 3] = ["--lib", "--bins", "--tests"];
/// How long the tests may be silent before it is checked that they still run.
const PATIENCE: Duration = Duration::from_secs(1);

/// Builds everything once, installs, and runs the tests whose name contains one of `only` (all of
/// them where that is empty).
pub(crate) fn run(workspace: &Workspace, only: &[String]) -> anyhow::Result<()> {
    step("CUDA toolkit", || cuda::install_toolkit(workspace))?;
    let options = cuda::build_options(workspace);
    // Benches and examples are type-checked by `lint`, and linked when they are run.
    let mut build = workspace.cargo();
    build.arg("build").args(options.iter().filter(|option| **option != "--all-targets"));
    step_command("build", build.args(TARGETS))?;
    let python = step("python environment", || python::ensure(&workspace.target_dir))?;
    let model = step("demo model", || models::demo(&workspace.target_dir))?;
    let gemma = step("Gemma 3 270M", models::gemma)?;
    let mut tests = workspace.cargo();
    tests
        .arg("test")
        .args(options.iter().filter(|option| **option != "--all-targets"))
        .args(TARGETS)
        .args(["--no-fail-fast", "--"])
        .args(only)
        .env("OARLOCK_TEST_PYTHON", python)
        .env("OARLOCK_DEMO_MODEL", model)
        .envs(gemma.map(|path| ("OARLOCK_GEMMA_MODEL", path)));
    step("tests", || run_tests(&mut tests, &mut io::stdout()))
}

/// Runs cargo and passes its output on to `out`, then closes with the sum over all test programs.
fn run_tests(cargo: &mut Command, out: &mut dyn Write) -> anyhow::Result<()> {
    let shown = show(cargo);
    eprintln!("$ {shown}");
    let child = cargo.stdin(Stdio::null()).stdout(Stdio::piped()).spawn();
    let mut child = child.with_context(|| format!("cannot start `{shown}`"))?;
    let stdout = child.stdout.take().context("the child has no standard output")?;
    let (sender, lines) = mpsc::channel();
    thread::spawn(move || {
        let mut lines = BufReader::new(stdout).split(b'\n').map_while(Result::ok);
        // Ends with the output, or when nobody listens any more.
        while lines.next().is_some_and(|line| sender.send(line).is_ok()) {}
    });
    let mut totals = Totals::default();
    let mut had_ended = false;
    loop {
        match lines.recv_timeout(PATIENCE) {
            Ok(line) => {
                totals.add(&String::from_utf8_lossy(&line));
                out.write_all(&[&line, b"\n".as_slice()].concat()).context("cannot write")?;
            }
            Err(RecvTimeoutError::Disconnected) => break,
            // A process that a test left behind may hold the pipe open for ever. Once all was silent
            // for so long after the end, what was said before it has come.
            Err(RecvTimeoutError::Timeout) if had_ended => break,
            Err(RecvTimeoutError::Timeout) => had_ended = has_ended(&mut child),
        }
    }
    let status = child.wait().with_context(|| format!("cannot wait for `{shown}`"))?;
    let Totals { programs, passed, failed, ignored } = totals;
    // A form that CI systems count.
    writeln!(out, "{programs} test programs, in all:").context("cannot write")?;
    writeln!(out, "{passed} passed, {failed} failed, {ignored} skipped").context("cannot write")?;
    if !status.success() {
        bail!("`{shown}` ended with {status}");
    }
    Ok(())
}

fn has_ended(child: &mut Child) -> bool {
    child.try_wait().is_ok_and(|status| status.is_some())
}

/// Sums of the `test result:` lines: how many programs, and how many tests of each fate.
#[derive(Debug, Default, PartialEq, Eq)]
struct Totals {
    programs: u64,
    passed: u64,
    failed: u64,
    ignored: u64,
}

impl Totals {
    /// Counts `test result: ok. 3 passed; 0 failed; 0 ignored; …`; other lines say nothing.
    fn add(&mut self, line: &str) {
        let Some((_, counts)) =
            line.strip_prefix("test result: ").and_then(|rest| rest.split_once(". "))
        else {
            return;
        };
        self.programs += 1;
        for count in counts.split("; ") {
            let Some((number, what)) = count.split_once(' ') else { continue };
            let number = number.parse().unwrap_or(0);
            match what {
                "passed" => self.passed += number,
                "failed" => self.failed += number,
                "ignored" => self.ignored += number,
                _ => {}
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn results_of_all_programs_are_added() {
        let mut totals = Totals::default();
        for line in [
            "running 3 tests",
            "test result: ok. 3 passed; 0 failed; 1 ignored; 0 measured; 0 filtered out; \
             finished in 0.00s",
            "test result: FAILED. 2 passed; 5 failed; 0 ignored; 0 measured; 0 filtered out; \
             finished in 1.23s",
        ] {
            totals.add(line);
        }
        let expected = Totals { programs: 2, passed: 5, failed: 5, ignored: 1 };
        assert_eq!(totals, expected);
    }

    #[test]
    fn a_process_left_behind_does_not_hold_the_run_up() {
        let script = "sleep 30 & echo $!; echo 'test result: ok. 1 passed; 0 failed; 0 ignored'";
        let mut out = vec![];
        run_tests(Command::new("sh").args(["-c", script]), &mut out).expect("it passed");
        let out = String::from_utf8_lossy(&out);
        assert!(out.ends_with("\n1 passed, 0 failed, 0 skipped\n"), "{out}");
        let pid = out.lines().next().expect("the first line");
        // Still there: the run ended before it.
        let killed = Command::new("kill").arg(pid).status().expect("kill");
        assert!(killed.success());
    }

    #[test]
    fn the_end_of_a_failing_cargo_is_an_error() {
        let script = "echo 'test result: FAILED. 0 passed; 1 failed; 0 ignored'; exit 101";
        let mut out = vec![];
        let mut command = Command::new("sh");
        let result = run_tests(command.args(["-c", script]), &mut out);
        let error = result.expect_err("it fails");
        assert!(error.to_string().contains("exit status: 101"), "{error}");
        let out = String::from_utf8_lossy(&out);
        assert!(out.ends_with("\n0 passed, 1 failed, 0 skipped\n"), "{out}");
    }
}
