//! What can be wrong with a keys file. Each message names the file, the place and the remedy.

use std::io;
use std::path::PathBuf;

/// A keys file that cannot be used or changed.
#[derive(Debug, thiserror::Error)]
pub enum AccessError {
    /// There is no file.
    #[error(
        "there is no keys file {path}; create it with `oarlock keys add --keys {path} --tenant NAME`",
        path = path.display()
    )]
    Missing {
        /// Where it should be.
        path: PathBuf,
    },
    /// It cannot be read.
    #[error("cannot read the keys file {}", path.display())]
    Read {
        /// The file.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// It is longer than any sensible one.
    #[error("the keys file {} is longer than {limit} bytes; take out revoked keys", path.display())]
    TooLarge {
        /// The file.
        path: PathBuf,
        /// Bytes at most.
        limit: u64,
    },
    /// Everybody on the machine could add keys.
    #[error(
        "the keys file {path} can be written by everybody; run `chmod 600 {path}`",
        path = path.display()
    )]
    WritableByAll {
        /// The file.
        path: PathBuf,
    },
    /// It is not TOML of the expected shape.
    #[error("{}, line {line}: {problem}", path.display())]
    Syntax {
        /// The file.
        path: PathBuf,
        /// Counted from 1.
        line: usize,
        /// What was found and what was expected.
        problem: String,
    },
    /// It was written by another version of this program.
    #[error(
        "{}: version {found} is not known, this program reads version {known}; use the program that wrote it",
        path.display()
    )]
    Version {
        /// The file.
        path: PathBuf,
        /// What it says.
        found: u32,
        /// What it should say.
        known: u32,
    },
    /// A key with a value that it cannot have.
    #[error("{}: key {key}: {field}: {problem}", path.display())]
    Invalid {
        /// The file.
        path: PathBuf,
        /// The key's id, or its place in the file where it has none.
        key: String,
        /// The field.
        field: &'static str,
        /// What is wrong, and what would be right.
        problem: String,
    },
    /// There is no key with this id.
    #[error(
        "{path} has no key {id}; `oarlock keys list --keys {path}` shows those it has",
        path = path.display()
    )]
    UnknownKey {
        /// The file.
        path: PathBuf,
        /// What was looked for.
        id: String,
    },
    /// Someone else is changing it.
    #[error("the keys file is being changed by someone else, who holds {}; try again", path.display())]
    Locked {
        /// The lock file.
        path: PathBuf,
    },
    /// It cannot be written; the old one is as it was.
    #[error("cannot write the keys file {}", path.display())]
    Write {
        /// The file.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// A new file could not be given to the owner of the old one, who may be the server.
    #[error(
        "the keys file {path} belongs to user {user} and group {group}, and a new one cannot be given to \
         them; it was not changed: run this as root (`sudo`), or as that user in that group",
        path = path.display()
    )]
    Owner {
        /// The file.
        path: PathBuf,
        /// Its user's number.
        user: u32,
        /// Its group's number.
        group: u32,
        /// What the operating system says.
        source: io::Error,
    },
    /// The operating system gives no random numbers.
    #[error("no randomness from the operating system for a new key")]
    Randomness(#[source] getrandom::Error),
}
