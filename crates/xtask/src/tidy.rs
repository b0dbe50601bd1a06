//! `cargo xtask tidy`: the rules of this repository that no other tool checks.
//!
//! Each rule is a function from text or metadata to findings, tested on tiny inputs; this file
//! feeds them the real ones.

mod layers;
mod manifests;
mod sources;

use std::fmt;
use std::fs;
use std::path::Path;

use anyhow::{Context as _, bail};
use cargo_metadata::{Metadata, MetadataCommand};

use crate::workspace::Workspace;

/// A rule that is broken: where, and what to do about it.
#[derive(Debug, PartialEq, Eq)]
struct Finding {
    /// Relative to the checkout.
    file: String,
    message: String,
}

impl Finding {
    fn new(file: impl Into<String>, message: impl Into<String>) -> Finding {
        Finding { file: file.into(), message: message.into() }
    }
}

impl fmt::Display for Finding {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.file, self.message)
    }
}

/// Files that must be there, and what for.
const REQUIRED_FILES: [(&str, &str); 4] = [
    ("LICENSE", "the text of Apache-2.0"),
    ("README.md", "what this is and how to start it"),
    ("clippy.toml", "lint settings that all crates share"),
    ("crates/README.md", "the code map: every crate in backticks, with its charter"),
];

/// Prints every finding; an error if there is one.
pub(crate) fn run(workspace: &Workspace) -> anyhow::Result<()> {
    let metadata = read_metadata(&workspace.root)?;
    for warning in manifests::duplicates(&metadata) {
        eprintln!("warning: {warning}");
    }
    let mut findings = check_manifests(workspace, &metadata)?;
    let mut num_files = 0;
    sources::walk(&workspace.root, &workspace.target_dir, &mut |path, bytes| {
        num_files += 1;
        findings.extend(sources::check(path, bytes));
    })?;
    for finding in &findings {
        eprintln!("error: {finding}");
    }
    if !findings.is_empty() {
        bail!("{} findings of tidy", findings.len());
    }
    eprintln!("{num_files} files and {} crates are tidy", metadata.workspace_members.len());
    Ok(())
}

fn read_metadata(root: &Path) -> anyhow::Result<Metadata> {
    // Crates of other systems are neither downloaded nor of interest.
    let mut options = vec!["--filter-platform".into(), "x86_64-unknown-linux-gnu".into()];
    if std::env::var_os("CI").is_some() {
        options.push("--locked".into());
    }
    MetadataCommand::new()
        .manifest_path(root.join("Cargo.toml"))
        .other_options(options)
        .exec()
        .context("cannot read the crate graph (is Cargo.lock committed and up to date?)")
}

/// The rules about manifests, the code map, licences and lint configuration.
fn check_manifests(workspace: &Workspace, metadata: &Metadata) -> anyhow::Result<Vec<Finding>> {
    let read = |name: &str| {
        let path = workspace.root.join(name);
        fs::read_to_string(&path).with_context(|| format!("cannot read {}", path.display()))
    };
    let mut findings = manifests::uncommented_dependencies("Cargo.toml", &read("Cargo.toml")?);
    for (file, purpose) in REQUIRED_FILES {
        if !workspace.root.join(file).is_file() {
            findings.push(Finding::new(file, format!("is missing: write it ({purpose})")));
        }
    }
    let code_map = read("crates/README.md").unwrap_or_default();
    let shared_lints = read("clippy.toml").unwrap_or_default();
    for package in metadata.workspace_packages() {
        let folder = package.manifest_path.strip_prefix(&metadata.workspace_root);
        let folder = folder.ok().and_then(|path| path.parent()).map(ToString::to_string);
        let folder = folder.with_context(|| format!("{} is outside", package.name))?;
        let manifest = format!("{folder}/Cargo.toml");
        let package = layers::Package::from_metadata(package);
        findings.extend(layers::check(&manifest, &package));
        findings.extend(manifests::names(&manifest, &folder, &package));
        findings.extend(manifests::licence(&manifest, package.licence.as_deref()));
        findings.extend(manifests::inherited_lints(&manifest, &read(&manifest)?));
        findings.extend(manifests::code_map("crates/README.md", &code_map, &package.name));
        if layers::is_pure(&package.name) {
            let name = format!("{folder}/clippy.toml");
            let own = fs::read_to_string(workspace.root.join(&name)).unwrap_or_default();
            findings.extend(manifests::pure_clippy(&name, &own, &shared_lints));
        }
    }
    Ok(findings)
}
