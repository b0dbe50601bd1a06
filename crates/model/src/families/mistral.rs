//! Mistral: Llama's shape, and in the first release a window on all layers (Jiang et al. 2023).

use serde_json::json;

use super::{Family, PLAIN};

pub(super) const FAMILY: Family = Family {
    name: "Mistral",
    hub: &["mistral"],
    // GGUF files are Llama's.
    from_config: |config| {
        let config =
            config.with_defaults(json!({ "sliding_window": 4096, "num_key_value_heads": 8 }));
        let mut spec = config.decoder()?;
        spec.windowed = config.windowed(&spec, |_| true)?;
        Ok(spec)
    },
    ..PLAIN
};
