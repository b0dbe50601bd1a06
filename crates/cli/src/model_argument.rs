//! `--model`: what is served, and what it is called.

use std::path::PathBuf;
use std::str::FromStr;

/// A model to serve.
#[derive(Clone, Debug)]
pub(crate) enum Model {
    /// The demo model, fetched on first use.
    Demo,
    /// A weight file, or a folder.
    Path(PathBuf),
}

impl FromStr for Model {
    type Err = std::convert::Infallible;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        Ok(if text == "demo" { Self::Demo } else { Self::Path(PathBuf::from(text)) })
    }
}

impl Model {
    /// The name that clients use unless `--served-name` says otherwise.
    pub(crate) fn default_name(&self) -> String {
        match self {
            Self::Demo => "demo".to_owned(),
            // A folder's name may have dots; a file's ending says nothing.
            Self::Path(path) => {
                let absolute = path.canonicalize().unwrap_or_else(|_| path.clone());
                let is_folder = absolute.is_dir();
                let name = if is_folder { absolute.file_name() } else { path.file_stem() };
                let name = name.unwrap_or(path.as_os_str()).to_string_lossy();
                if is_folder { name.into_owned() } else { without_part(&name).to_owned() }
            }
        }
    }
}

/// A name without what says that the file is the first of several.
fn without_part(name: &str) -> &str {
    let is_count =
        |count: &str| count.len() == 5 && count.bytes().all(|byte| byte.is_ascii_digit());
    let parts = name.rsplit_once("-of-").filter(|(_, count)| is_count(count));
    parts.and_then(|(first, _)| first.strip_suffix("-00001")).unwrap_or(name)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn files_and_folders_give_names() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("Qwen2.5-7B");
        std::fs::create_dir(&path).unwrap();
        let name = |text: &str| text.parse::<Model>().map(|model| model.default_name()).unwrap();
        assert_eq!(name(path.to_str().unwrap()), "Qwen2.5-7B");
        assert_eq!(name("demo"), "demo");
        assert_eq!(name("models/qwen2.5-7b-q4_k_m.gguf"), "qwen2.5-7b-q4_k_m");
        assert_eq!(name("qwen-q8_0-00001-of-00012.gguf"), "qwen-q8_0");
        for whole in ["a-00002-of-00012", "a-of-00012", "00001-of-00012", "a-00001-of-012"] {
            assert_eq!(name(&format!("{whole}.gguf")), whole);
        }
    }
}
