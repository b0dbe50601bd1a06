//! Qwen2 and Qwen2.5: Llama's shape with biases on queries, keys and values.

use serde_json::json;

use super::{Family, PLAIN};
use crate::ModelError;
use crate::hugging_face::Config;
use crate::spec::{DecoderSpec, WindowedLayers};

pub(super) const FAMILY: Family = Family {
    name: "Qwen2",
    hub: &["qwen2"],
    gguf: &["qwen2"],
    from_config: |config| {
        let mut spec = config.decoder()?;
        spec.qkv_bias = true;
        spec.attention_output_bias = false;
        spec.windowed = windowed(config, &spec)?;
        Ok(spec)
    },
    from_gguf: |keys| {
        let mut spec = keys.decoder()?;
        spec.qkv_bias = true;
        Ok(spec)
    },
    ..PLAIN
};

/// With `use_sliding_window`, layers from `max_window_layers` on see a window.
pub(super) fn windowed(
    config: &Config,
    spec: &DecoderSpec,
) -> Result<Option<WindowedLayers>, ModelError> {
    if !config.flag("use_sliding_window")? {
        return Ok(None);
    }
    let config = config.with_defaults(json!({ "sliding_window": 4096, "max_window_layers": 28 }));
    let field = "max_window_layers";
    let first = config.get(field).and_then(serde_json::Value::as_u64);
    let first = first.ok_or_else(|| config.wrong(field, "missing, or not a number of layers"))?;
    config.windowed(spec, |layer| layer as u64 >= first)
}
