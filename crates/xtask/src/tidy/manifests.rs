//! Rules about manifests, names, licences, lint configuration and the code map.

use std::collections::BTreeMap;
use std::collections::BTreeSet;

use cargo_metadata::Metadata;

use super::Finding;
use super::layers::Package;

const LICENCE: &str = "Apache-2.0";

/// What every pure crate's clippy.toml bans, by path.
const PURE_BANS: [&str; 3] =
    ["std::time::Instant::now", "std::time::SystemTime::now", "std::collections::HashMap"];

/// The package is `oarlock-FOLDER` (`xtask` keeps the name that everyone types).
pub(super) fn names(manifest: &str, folder: &str, package: &Package) -> Vec<Finding> {
    let expected_folder = format!("crates/{}", package.name);
    let has_prefix = package.full_name.starts_with("oarlock-") || package.full_name == "xtask";
    if folder == expected_folder && has_prefix {
        return vec![];
    }
    let message = format!(
        "package `{}` in {folder}: packages are named `oarlock-` and their folder",
        package.full_name
    );
    vec![Finding::new(manifest, message)]
}

pub(super) fn licence(manifest: &str, licence: Option<&str>) -> Vec<Finding> {
    if licence == Some(LICENCE) {
        return vec![];
    }
    let message = format!("the licence must be {LICENCE}: write `license.workspace = true`");
    vec![Finding::new(manifest, message)]
}

/// Without this table a crate has none of the workspace's lints.
pub(super) fn inherited_lints(manifest: &str, text: &str) -> Vec<Finding> {
    let mut lines = text.lines().map(str::trim).skip_while(|line| *line != "[lints]").skip(1);
    if lines.next() == Some("workspace = true") {
        return vec![];
    }
    vec![Finding::new(manifest, "write `[lints]` and under it `workspace = true`")]
}

/// Every crate is on the code map, by the name of its folder in backticks.
pub(super) fn code_map(file: &str, text: &str, name: &str) -> Vec<Finding> {
    if text.contains(&format!("`{name}`")) {
        return vec![];
    }
    vec![Finding::new(file, format!("add `{name}`, in backticks, with its charter"))]
}

/// Every line under `[workspace.dependencies]` stands under a comment that says what it is for;
/// several may share one, and a blank line ends its reach.
pub(super) fn uncommented_dependencies(file: &str, text: &str) -> Vec<Finding> {
    let mut findings = vec![];
    let mut in_section = false;
    let mut has_comment = false;
    for (index, line) in text.lines().map(str::trim).enumerate() {
        if line.starts_with('[') {
            in_section = line == "[workspace.dependencies]";
        } else if line.starts_with('#') {
            has_comment = true;
        } else if line.is_empty() {
            has_comment = false;
        } else if in_section
            && !has_comment
            && let Some((name, _)) = line.split_once('=')
        {
            let message = format!("say in a comment above what `{}` is for", name.trim());
            findings.push(Finding::new(format!("{file}:{}", index + 1), message));
        }
    }
    findings
}

/// A crate's own clippy.toml replaces the root's, so it must repeat it, and bans what is impure.
pub(super) fn pure_clippy(file: &str, own: &str, shared: &str) -> Vec<Finding> {
    let own_lines: BTreeSet<&str> = own.lines().map(str::trim).collect();
    let shared_lines = shared.lines().map(str::trim);
    let mut findings: Vec<Finding> = shared_lines
        .filter(|line| !line.is_empty() && !line.starts_with('#'))
        .filter(|line| !own_lines.contains(line))
        .map(|line| Finding::new(file, format!("repeat `{line}` of the root's clippy.toml")))
        .collect();
    for path in PURE_BANS {
        if !own.contains(&format!("\"{path}\"")) {
            let message = format!("ban `{path}` (disallowed-methods or disallowed-types)");
            findings.push(Finding::new(file, message));
        }
    }
    findings
}

/// External crates that are built in several incompatible versions: not wrong, but slow.
pub(super) fn duplicates(metadata: &Metadata) -> Vec<String> {
    let Some(resolve) = &metadata.resolve else { return vec![] };
    let built: BTreeSet<_> = resolve.nodes.iter().map(|node| &node.id).collect();
    let mut versions: BTreeMap<&str, BTreeSet<String>> = BTreeMap::new();
    for package in metadata.packages.iter().filter(|package| built.contains(&package.id)) {
        let version = &package.version;
        let compatible = if version.major > 0 {
            version.major.to_string()
        } else {
            format!("0.{}", version.minor)
        };
        versions.entry(&package.name).or_default().insert(compatible);
    }
    versions
        .into_iter()
        .filter(|(_, versions)| versions.len() > 1)
        .map(|(name, versions)| {
            let versions: Vec<_> = versions.into_iter().collect();
            format!("`{name}` is built in versions {}", versions.join(" and "))
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_dependency_stands_under_a_comment() {
        let good = "[workspace.dependencies]\n# ours\na = { path = \"a\" }\nb = \"1\"\n\n# c\nc = \"1\"\n\
                    [profile.dev]\ndebug = 1\n";
        assert_eq!(uncommented_dependencies("Cargo.toml", good), []);
        let bad = "[workspace]\nresolver = \"3\"\n[workspace.dependencies]\n# ours\na = \"1\"\n\nb = \"1\"\n";
        let findings = uncommented_dependencies("Cargo.toml", bad);
        assert_eq!(findings.len(), 1);
        assert_eq!(findings[0].file, "Cargo.toml:7");
        assert!(findings[0].message.contains("`b`"));
    }

    #[test]
    fn names_follow_folders() {
        let package = |full_name: &str, name: &str| Package {
            name: name.into(),
            full_name: full_name.into(),
            licence: None,
            dependencies: vec![],
        };
        assert_eq!(names("m", "crates/text", &package("oarlock-text", "text")), []);
        assert_eq!(names("m", "crates/xtask", &package("xtask", "xtask")), []);
        assert_eq!(names("m", "crates/words", &package("oarlock-text", "text")).len(), 1);
        assert_eq!(names("m", "crates/text", &package("text", "text")).len(), 1);
    }

    #[test]
    fn a_crate_has_the_licence_the_lints_and_a_place_on_the_map() {
        assert_eq!(licence("m", Some("Apache-2.0")), []);
        assert_eq!(licence("m", Some("MIT")).len(), 1);
        assert_eq!(licence("m", None).len(), 1);
        assert_eq!(inherited_lints("m", "[package]\n\n[lints]\nworkspace = true\n"), []);
        assert_eq!(inherited_lints("m", "[package]\n[dependencies]\n").len(), 1);
        assert_eq!(inherited_lints("m", "[lints.rust]\nunsafe_code = \"allow\"\n").len(), 1);
        assert_eq!(code_map("m", "| `text` | words |", "text"), []);
        assert_eq!(code_map("m", "| `context` | text |", "text").len(), 1);
    }

    #[test]
    fn a_pure_crate_repeats_the_shared_lints_and_bans_the_clock() {
        let shared = "# shared\nallow-unwrap-in-tests = true\n";
        let bans = PURE_BANS
            .map(|path| {
                format!(
                    "{{ path = \"{path}\" }}
"
                )
            })
            .concat();
        let good = format!("allow-unwrap-in-tests = true\n{bans}");
        assert_eq!(pure_clippy("clippy.toml", &good, shared), []);
        assert_eq!(pure_clippy("clippy.toml", &bans, shared).len(), 1);
        assert_eq!(pure_clippy("clippy.toml", "", shared).len(), 1 + PURE_BANS.len());
    }
}
