//! Which crate may depend on which: the table of the design, and who owns which external crate.

use cargo_metadata::DependencyKind;

use super::Finding;

/// The layers, from the top: a crate depends on its own layer and on those above it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Layer {
    Words,
    PureCore,
    Compute,
    Processes,
    Edges,
}

/// Every crate of the design, also those that do not exist yet.
const LAYERS: [(&str, Layer); 27] = [
    ("types", Layer::Words),
    ("rpc", Layer::Words),
    ("kv-cache", Layer::PureCore),
    ("scheduler", Layer::PureCore),
    ("router", Layer::PureCore),
    ("text", Layer::PureCore),
    ("sampler", Layer::PureCore),
    ("backend", Layer::Compute),
    ("backend-cpu", Layer::Compute),
    ("backend-cuda", Layer::Compute),
    ("collective", Layer::Compute),
    ("collective-nccl", Layer::Compute),
    ("model", Layer::Compute),
    ("worker", Layer::Processes),
    ("engine", Layer::Processes),
    ("discovery", Layer::Processes),
    ("access", Layer::Processes),
    ("gateway", Layer::Processes),
    ("operator", Layer::Processes),
    ("config", Layer::Edges),
    ("telemetry", Layer::Edges),
    ("cli", Layer::Edges),
    ("bench", Layer::Edges),
    ("simgpu", Layer::Edges),
    ("sim", Layer::Edges),
    ("testkit", Layer::Edges),
    ("fuzz", Layer::Edges),
];

/// Crates without tokio, clock, lock, file, socket, tracing or hash-map order, each with the
/// external crates it may use. Whoever adds one makes sure that it brings none of those along.
const PURE: [(&str, &[&str]); 6] = [
    ("types", &[]),
    ("kv-cache", &[]),
    ("scheduler", &["thiserror"]),
    ("router", &["thiserror"]),
    ("sampler", &["thiserror"]),
    (
        "text",
        &[
            "thiserror",
            "aho-corasick",
            "tokenizers",
            "minijinja",
            "minijinja-contrib",
            "serde",
            "serde_json",
        ],
    ),
];

/// External crates that only some crates may name, in tests too.
const OWNED: [(&str, &[&str]); 7] = [
    ("prost", &["rpc"]),
    ("protox", &["rpc"]),
    ("tonic", &["rpc"]),
    ("tonic-prost", &["rpc"]),
    ("tonic-prost-build", &["rpc"]),
    // A fake server in the tests of `bench`.
    ("axum", &["gateway", "bench", "fuzz"]),
    ("hyper", &["gateway"]),
];

/// Crates that may handle JSON outside of tests.
const JSON: [&str; 8] = ["gateway", "model", "text", "cli", "bench", "xtask", "testkit", "fuzz"];

/// What the rules need to know of a package.
pub(super) struct Package {
    /// Without the prefix `oarlock-`.
    pub(super) name: String,
    pub(super) full_name: String,
    pub(super) licence: Option<String>,
    pub(super) dependencies: Vec<Dependency>,
}

/// A dependency as the manifest declares it.
pub(super) struct Dependency {
    /// Without the prefix `oarlock-` where it is ours.
    pub(super) name: String,
    pub(super) is_ours: bool,
    pub(super) is_dev: bool,
}

impl Package {
    pub(super) fn from_metadata(package: &cargo_metadata::Package) -> Package {
        let dependencies = package.dependencies.iter().map(|dependency| Dependency {
            name: short_name(&dependency.name).to_owned(),
            is_ours: dependency.path.is_some(),
            is_dev: dependency.kind == DependencyKind::Development,
        });
        Package {
            name: short_name(&package.name).to_owned(),
            full_name: package.name.to_string(),
            licence: package.license.clone(),
            dependencies: dependencies.collect(),
        }
    }
}

fn short_name(name: &str) -> &str {
    name.strip_prefix("oarlock-").unwrap_or(name)
}

pub(super) fn is_pure(name: &str) -> bool {
    PURE.iter().any(|(pure, _)| *pure == name)
}

fn layer(name: &str) -> Option<Layer> {
    LAYERS.iter().find(|(known, _)| *known == name).map(|(_, layer)| *layer)
}

/// Everything wrong with the dependencies of one package.
pub(super) fn check(manifest: &str, package: &Package) -> Vec<Finding> {
    let from = package.name.as_str();
    let complaints = package.dependencies.iter().filter_map(|dependency| {
        if dependency.is_ours {
            refuse_own(from, &dependency.name, dependency.is_dev)
        } else {
            refuse_external(from, &dependency.name, dependency.is_dev)
        }
    });
    complaints.map(|message| Finding::new(manifest, message)).collect()
}

/// Why `from` may not depend on our crate `to`, if it may not.
fn refuse_own(from: &str, to: &str, is_dev: bool) -> Option<String> {
    // The binary and the automation may use everything.
    if from == "cli" || from == "xtask" {
        return None;
    }
    let unknown = "is not in the table of crates/xtask/src/tidy/layers.rs: add it with its layer";
    let Some(from_layer) = layer(from) else { return Some(format!("`{from}` {unknown}")) };
    let Some(to_layer) = layer(to) else { return Some(format!("`{to}` {unknown}")) };
    // What tests run on, not what programs are made of.
    if is_dev && matches!(to, "testkit" | "simgpu") {
        return None;
    }
    if is_pure(from) && !is_pure(to) {
        return Some(format!(
            "`{from}` is pure and `{to}` is not: pass in the values it needs instead"
        ));
    }
    if from_layer == Layer::Processes {
        // Logs, metrics and configuration are edges that every process needs.
        if to == "telemetry" || to == "config" {
            return None;
        }
        // Membership and keys, as the gateway sees them, are libraries: it looks engines and callers
        // up there.
        if from == "gateway" && (to == "discovery" || to == "access") {
            return None;
        }
        if to_layer == Layer::Processes {
            return Some(format!(
                "`{from}` and `{to}` are both processes: they meet only through the traits of \
                 `rpc`, which `cli` wires together"
            ));
        }
    }
    (to_layer > from_layer).then(|| {
        format!(
            "`{from}` ({from_layer:?}) depends on `{to}` ({to_layer:?}), a layer below its own: \
             move what it needs up, or turn the dependency round with a trait"
        )
    })
}

/// Why `from` may not depend on the external crate `to`, if it may not.
fn refuse_external(from: &str, to: &str, is_dev: bool) -> Option<String> {
    if let Some((_, owners)) = OWNED.iter().find(|(owned, _)| *owned == to)
        && !owners.contains(&from)
    {
        return Some(format!("`{to}` belongs to `{}` alone: use its API", owners.join("`, `")));
    }
    if is_dev {
        return None;
    }
    if to == "serde_json" && !JSON.contains(&from) {
        return Some(format!("JSON stays in {}: `{from}` passes typed values", JSON.join(", ")));
    }
    let (_, allowed) = PURE.iter().find(|(pure, _)| *pure == from)?;
    (!allowed.contains(&to)).then(|| {
        format!(
            "`{from}` is pure and `{to}` is not among the crates it may use; if `{to}` reads no \
             clock, file, socket or lock, add it to PURE in crates/xtask/src/tidy/layers.rs"
        )
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn directions_of_the_design_are_allowed() {
        for (from, to) in [
            ("rpc", "types"),
            ("scheduler", "kv-cache"),
            ("backend", "sampler"),
            ("backend-cpu", "backend"),
            ("worker", "model"),
            ("engine", "scheduler"),
            ("gateway", "discovery"),
            ("gateway", "access"),
            ("gateway", "telemetry"),
            ("cli", "worker"),
            ("testkit", "types"),
        ] {
            assert_eq!(refuse_own(from, to, false), None, "{from} -> {to}");
        }
        assert_eq!(refuse_own("engine", "testkit", true), None);
        assert_eq!(refuse_own("text", "testkit", true), None);
        assert_eq!(refuse_own("backend-cuda", "simgpu", true), None);
    }

    #[test]
    fn other_directions_are_refused() {
        for (from, to) in [
            ("types", "rpc"),
            ("scheduler", "rpc"),
            ("scheduler", "telemetry"),
            ("kv-cache", "backend"),
            ("backend", "worker"),
            ("engine", "worker"),
            ("gateway", "engine"),
            ("engine", "discovery"),
            ("engine", "access"),
            ("engine", "testkit"),
            ("model", "telemetry"),
            ("discovery", "cli"),
            ("newcomer", "types"),
            ("engine", "newcomer"),
        ] {
            assert!(refuse_own(from, to, false).is_some(), "{from} -> {to}");
        }
        assert!(refuse_own("gateway", "engine", true).is_some());
    }

    #[test]
    fn external_crates_have_owners() {
        assert_eq!(refuse_external("rpc", "tonic", false), None);
        assert_eq!(refuse_external("gateway", "axum", false), None);
        assert_eq!(refuse_external("engine", "tokio", false), None);
        assert_eq!(refuse_external("engine", "serde_json", true), None);
        assert_eq!(refuse_external("scheduler", "proptest", true), None);
        for (from, to, is_dev) in [
            ("engine", "tonic", false),
            ("worker", "prost", true),
            ("cli", "axum", false),
            ("engine", "serde_json", false),
            ("scheduler", "tokio", false),
            ("text", "tracing", false),
            ("types", "rustix", false),
        ] {
            assert!(refuse_external(from, to, is_dev).is_some(), "{from} -> {to}");
        }
    }

    #[test]
    fn findings_name_the_manifest() {
        let package = Package {
            name: "scheduler".into(),
            full_name: "oarlock-scheduler".into(),
            licence: None,
            dependencies: vec![
                Dependency { name: "kv-cache".into(), is_ours: true, is_dev: false },
                Dependency { name: "libc".into(), is_ours: false, is_dev: false },
            ],
        };
        let findings = check("crates/scheduler/Cargo.toml", &package);
        assert_eq!(findings.len(), 1);
        assert_eq!(findings[0].file, "crates/scheduler/Cargo.toml");
        assert!(findings[0].message.contains("`libc`"));
    }
}
