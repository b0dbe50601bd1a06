//! How a long piece of work tells the user where it is: a bar on a terminal, lines elsewhere.

use std::cell::RefCell;
use std::io::{self, IsTerminal as _, Write as _};

use indicatif::{ProgressBar, ProgressStyle};

/// Where progress is reported to.
pub(crate) trait Progress {
    /// A stretch of work of `num_bytes` begins; it ends with the next stage or with `done`.
    fn stage(&self, what: &str, num_bytes: u64);
    /// Bytes of the stage that are done, in total.
    fn position(&self, num_bytes: u64);
    /// Something worth a line of its own.
    fn line(&self, text: &str);
    /// All stages are over.
    fn done(&self);
}

/// A bar where standard error is a terminal, plain lines on standard error elsewhere.
pub(crate) fn terminal_progress() -> Box<dyn Progress + Send> {
    if io::stderr().is_terminal() { Box::new(Bar::default()) } else { Box::new(Lines) }
}

/// An `indicatif` bar per stage.
#[derive(Default)]
struct Bar {
    bar: RefCell<Option<ProgressBar>>,
}

impl Progress for Bar {
    fn stage(&self, what: &str, num_bytes: u64) {
        self.done();
        let style = ProgressStyle::with_template(
            "{msg}\n[{bar:40}] {bytes}/{total_bytes} {bytes_per_sec} eta {eta}",
        );
        let bar = ProgressBar::new(num_bytes)
            .with_style(style.unwrap_or_else(|_| ProgressStyle::default_bar()))
            .with_message(what.to_owned());
        *self.bar.borrow_mut() = Some(bar);
    }

    fn position(&self, num_bytes: u64) {
        if let Some(bar) = &*self.bar.borrow() {
            bar.set_position(num_bytes);
        }
    }

    fn line(&self, text: &str) {
        match &*self.bar.borrow() {
            Some(bar) => bar.println(text),
            None => Lines.line(text),
        }
    }

    fn done(&self) {
        if let Some(bar) = self.bar.take() {
            bar.finish_and_clear();
        }
    }
}

impl Drop for Bar {
    fn drop(&mut self) {
        self.done();
    }
}

/// One line per stage and per part.
struct Lines;

impl Progress for Lines {
    fn stage(&self, what: &str, _num_bytes: u64) {
        self.line(what);
    }

    fn position(&self, _num_bytes: u64) {}

    fn line(&self, text: &str) {
        // A closed standard error must not stop the fetch.
        let _ = writeln!(io::stderr(), "{text}");
    }

    fn done(&self) {}
}
