//! Where things are: the checkout, the target folder, cargo itself.

use std::ffi::OsString;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::Context as _;
use cargo_metadata::MetadataCommand;

/// The checkout this program was started in.
pub(crate) struct Workspace {
    pub(crate) root: PathBuf,
    /// Build outputs, and what the tests install.
    pub(crate) target_dir: PathBuf,
}

impl Workspace {
    pub(crate) fn find() -> anyhow::Result<Workspace> {
        let metadata = MetadataCommand::new()
            .manifest_path(Path::new(env!("CARGO_MANIFEST_DIR")).join("Cargo.toml"))
            .no_deps()
            .exec()
            .context("cannot read the workspace: run this as `cargo xtask` inside the checkout")?;
        Ok(Workspace {
            root: metadata.workspace_root.into(),
            target_dir: metadata.target_directory.into(),
        })
    }

    /// The cargo that started this program, in the checkout.
    pub(crate) fn cargo(&self) -> Command {
        let mut command = Command::new(std::env::var_os("CARGO").unwrap_or("cargo".into()));
        command.current_dir(&self.root);
        // Set by the cargo that runs this program; they would change the inner one's fingerprints.
        let ours: Vec<OsString> = std::env::vars_os()
            .map(|(name, _)| name)
            .filter(|name| name.to_string_lossy().starts_with("CARGO_PKG_"))
            .collect();
        for name in ours {
            command.env_remove(name);
        }
        command.env_remove("CARGO_MANIFEST_DIR").env_remove("CARGO_MANIFEST_PATH");
        command
    }
}
