//! Running commands as named steps, so that a log says what ran, how long, and what failed.

use std::process::{Command, Stdio};
use std::time::Instant;

use anyhow::{Context as _, bail};

/// Runs `work` under a heading and says how long it took.
pub(crate) fn step<T>(name: &str, work: impl FnOnce() -> anyhow::Result<T>) -> anyhow::Result<T> {
    eprintln!("== {name}");
    let start = Instant::now();
    let result = work();
    let verdict = if result.is_ok() { "ok" } else { "FAILED" };
    eprintln!("== {name}: {verdict} after {:.1} s", start.elapsed().as_secs_f64());
    result.with_context(|| format!("step `{name}` failed"))
}

/// A step that is one command.
pub(crate) fn step_command(name: &str, command: &mut Command) -> anyhow::Result<()> {
    step(name, || run(command))
}

/// Runs a command to its end with our output streams and no input.
pub(crate) fn run(command: &mut Command) -> anyhow::Result<()> {
    let shown = show(command);
    eprintln!("$ {shown}");
    let status =
        command.stdin(Stdio::null()).status().with_context(|| format!("cannot start `{shown}`"))?;
    if !status.success() {
        bail!("`{shown}` ended with {status}");
    }
    Ok(())
}

/// The command as a person would type it; for messages, not for a shell.
pub(crate) fn show(command: &Command) -> String {
    let program = std::path::Path::new(command.get_program());
    let program = program.file_name().unwrap_or(command.get_program()).to_string_lossy();
    let arguments = command.get_args().map(|argument| argument.to_string_lossy());
    std::iter::once(program).chain(arguments).collect::<Vec<_>>().join(" ")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_command_that_fails_is_an_error_with_its_words() {
        let error = run(Command::new("sh").args(["-c", "exit 3"])).expect_err("it fails");
        assert!(error.to_string().starts_with("`sh -c exit 3` ended with"), "{error}");
        let error = run(&mut Command::new("/nonexistent/tool")).expect_err("it is not there");
        assert!(error.to_string().contains("cannot start `tool`"), "{error}");
    }

    #[test]
    fn a_failed_step_is_named() {
        let error = step("weld", || -> anyhow::Result<()> { bail!("no torch") });
        assert_eq!(format!("{:#}", error.expect_err("it fails")), "step `weld` failed: no torch");
    }
}
