//! Qwen3: Llama's shape with norms on query and key heads.

use serde_json::json;

use super::{Family, PLAIN, qwen2};

pub(super) const FAMILY: Family = Family {
    name: "Qwen3",
    hub: &["qwen3"],
    gguf: &["qwen3"],
    from_config: |config| {
        let config = config.with_defaults(json!({ "head_dim": 128 }));
        let mut spec = config.decoder()?;
        spec.head_norms = true;
        spec.windowed = qwen2::windowed(&config, &spec)?;
        Ok(spec)
    },
    from_gguf: |keys| {
        let mut spec = keys.decoder()?;
        spec.head_norms = true;
        Ok(spec)
    },
    ..PLAIN
};
