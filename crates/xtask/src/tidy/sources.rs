//! Rules about the text of files.

use std::fs;
use std::path::Path;

use anyhow::Context as _;

use super::Finding;

/// Lines of a Rust file, tests included.
const MAX_LINES: usize = 500;

/// Crates with code that the compiler cannot check: vector instructions, mapped files, and memory that
/// processes share.
const UNSAFE_CRATES: [&str; 5] = ["backend-cpu", "backend-cuda", "collective", "model", "simgpu"];

/// Folders with nothing of ours in them.
const SKIPPED: [&str; 4] = [".git", "target", "__pycache__", "node_modules"];

/// Hosts of package registries: a mirror must do, so they are named in nobody's text. (Written
/// in two pieces, or this file would break its own rule.)
const REGISTRIES: [&str; 5] = [
    concat!("crates", ".io"),
    concat!("pypi", ".org"),
    concat!("files.python", "hosted.org"),
    concat!("registry.npm", "js.org"),
    concat!("deb.debian", ".org"),
];

/// Hands every file of the checkout to `visit`, with its path from `root`, in a stable order.
pub(super) fn walk(
    root: &Path,
    target_dir: &Path,
    visit: &mut dyn FnMut(&str, &[u8]),
) -> anyhow::Result<()> {
    let mut folders = vec![root.to_owned()];
    while let Some(folder) = folders.pop() {
        let context = || format!("cannot list {}", folder.display());
        let entries: Result<Vec<_>, _> = fs::read_dir(&folder).with_context(context)?.collect();
        let mut entries = entries.with_context(context)?;
        entries.sort_by_key(fs::DirEntry::file_name);
        for entry in entries {
            let path = entry.path();
            let kind = entry.file_type().with_context(context)?;
            if kind.is_dir() {
                let name = entry.file_name();
                if path != target_dir && !SKIPPED.iter().any(|skipped| name == *skipped) {
                    folders.push(path);
                }
            } else if kind.is_file() {
                let bytes = fs::read(&path);
                let bytes = bytes.with_context(|| format!("cannot read {}", path.display()))?;
                let name = path.strip_prefix(root).unwrap_or(&path).to_string_lossy();
                visit(&name, &bytes);
            }
        }
    }
    Ok(())
}

/// Everything wrong with one file.
pub(super) fn check(path: &str, bytes: &[u8]) -> Vec<Finding> {
    let text = String::from_utf8_lossy(bytes);
    let mut findings = registry_names(path, &text);
    let is_rust = Path::new(path).extension().is_some_and(|extension| extension == "rs");
    // Generated code says so itself and is nobody's to tidy.
    if is_rust && !text.starts_with("// @generated") {
        findings.extend(opening(path, &text));
        findings.extend(length(path, &text));
        findings.extend(banned_words(path, &text));
        findings.extend(unsafe_opt_out(path, &text));
    }
    findings
}

fn registry_names(path: &str, text: &str) -> Vec<Finding> {
    // Cargo writes the registry's address into the lock file.
    if path == "Cargo.lock" {
        return vec![];
    }
    let named = REGISTRIES.iter().filter(|name| text.contains(**name));
    named
        .map(|name| {
            let message = format!("names the registry host {name}: say \"the registry\" instead");
            Finding::new(at(path, text, name), message)
        })
        .collect()
}

/// A file says what it is for in its first line.
fn opening(path: &str, text: &str) -> Option<Finding> {
    let first = text.lines().next().unwrap_or_default();
    let has_words = first.strip_prefix("//!").is_some_and(|words| !words.trim().is_empty());
    (!has_words).then(|| Finding::new(path, "begin with a `//!` line that says its purpose"))
}

fn length(path: &str, text: &str) -> Option<Finding> {
    let num_lines = text.lines().count();
    (num_lines > MAX_LINES).then(|| {
        let message = format!("{num_lines} lines, at most {MAX_LINES}: split it by subject");
        Finding::new(path, message)
    })
}

fn banned_words(path: &str, text: &str) -> Vec<Finding> {
    let banned = [
        (concat!("#[", "ignore"), "an ignored test rots: make it run, or remove it"),
        (concat!("todo", "!("), "finish it, or open an issue and leave it out"),
        (concat!("unimpl", "emented!("), "finish it, or return an error"),
    ];
    let found = banned.into_iter().filter(|(word, _)| text.contains(word));
    found
        .map(|(word, remedy)| Finding::new(at(path, text, word), format!("`{word}`: {remedy}")))
        .collect()
}

/// `unsafe` needs an opt-out from the workspace's lint, and few crates may take it.
fn unsafe_opt_out(path: &str, text: &str) -> Option<Finding> {
    let dense: String = text.split_whitespace().collect();
    let opts_out = ["allow", "expect", "warn"]
        .into_iter()
        .any(|level| dense.contains(&format!("{level}(unsafe_code")));
    if !opts_out {
        return None;
    }
    let is_listed = UNSAFE_CRATES.iter().any(|name| path.starts_with(&format!("crates/{name}/")));
    (!is_listed).then(|| {
        let message = format!(
            "unsafe code stays in {}: use a safe wrapper (rustix), or argue for a new place in \
             UNSAFE_CRATES of crates/xtask/src/tidy/sources.rs",
            UNSAFE_CRATES.join(", ")
        );
        Finding::new(at(path, text, "unsafe_code"), message)
    })
}

/// `path:line` of the first occurrence of `word`.
fn at(path: &str, text: &str, word: &str) -> String {
    let before = text.find(word).map_or("", |position| &text[..position]);
    format!("{path}:{}", before.matches('\n').count() + 1)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn messages(path: &str, text: &str) -> Vec<String> {
        check(path, text.as_bytes()).iter().map(ToString::to_string).collect()
    }

    #[test]
    fn a_clean_file_has_no_findings() {
        assert!(messages("crates/text/src/lib.rs", "//! Words.\nfn main() {}\n").is_empty());
        assert!(messages("README.md", "# Oarlock\n").is_empty());
        assert!(messages("a.rs", "// @generated\nfn a() {}\n").is_empty());
    }

    #[test]
    fn a_rust_file_opens_with_its_purpose() {
        for text in ["", "fn main() {}\n", "//!\n", "// words\n"] {
            let findings = messages("crates/text/src/lib.rs", text);
            assert_eq!(findings.len(), 1, "{text:?}");
            assert!(findings[0].contains("//!"), "{findings:?}");
        }
    }

    #[test]
    fn a_long_file_is_found() {
        let text = |num_lines: usize| format!("//! Words.\n{}", "\n".repeat(num_lines - 1));
        assert!(messages("a.rs", &text(MAX_LINES)).is_empty());
        assert!(messages("a.rs", &text(MAX_LINES + 1))[0].contains("501 lines"));
    }

    #[test]
    fn banned_words_are_found_with_their_line() {
        for word in [
            concat!("#[", "ignore]"),
            concat!("#[", "ignore = \"slow\"]"),
            concat!("todo", "!()"),
            concat!("unimpl", "emented!()"),
        ] {
            let findings = messages("a.rs", &format!("//! Words.\n\n{word}\n"));
            assert_eq!(findings.len(), 1, "{word}");
            assert!(findings[0].starts_with("a.rs:3: "), "{findings:?}");
        }
    }

    #[test]
    fn unsafe_code_has_few_homes() {
        let text = concat!("//! Words.\n#![expect(", "unsafe_code, reason = \"x\")]\n");
        assert!(messages("crates/backend-cpu/src/avx2.rs", text).is_empty());
        assert_eq!(messages("crates/engine/src/lib.rs", text).len(), 1);
        let text =
            concat!("//! Words.\n    #[allow(\n        ", "unsafe_code,\n    reason = \"x\"\n)]\n");
        assert_eq!(messages("crates/backend/src/lib.rs", text).len(), 1);
    }

    #[test]
    fn registry_hosts_are_found_outside_the_lock_file() {
        let text = format!("# Words\nfrom https://{}/x\n", REGISTRIES[1]);
        assert_eq!(messages("README.md", &text).len(), 1);
        assert!(messages("README.md", &text)[0].starts_with("README.md:2: "));
        assert!(messages("Cargo.lock", &text).is_empty());
    }

    #[test]
    fn the_walk_leaves_out_builds_and_git() {
        let root = std::env::temp_dir().join(format!("oarlock-tidy-{}", std::process::id()));
        for file in ["b.md", "a/c.rs", "target/x.rs", ".git/config", "out/y.rs", ".ci/run"] {
            let path = root.join(file);
            fs::create_dir_all(path.parent().expect("a folder")).expect("create");
            fs::write(path, "text").expect("write");
        }
        let mut seen = vec![];
        walk(&root, &root.join("out"), &mut |path, _| seen.push(path.to_owned())).expect("walk");
        seen.sort();
        assert_eq!(seen, [".ci/run", "a/c.rs", "b.md"]);
        fs::remove_dir_all(root).expect("remove");
    }
}
