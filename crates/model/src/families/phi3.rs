//! Phi-3, Phi-3.5 and Phi-4: Llama's shape with queries, keys and values in one tensor, gate and up in another;
//! some rotate a part of each head only (Abdin et al. 2024).

use serde_json::{Value, json};

use super::{Family, PLAIN};
use crate::hugging_face::Config;
use crate::spec::WindowedLayers;

pub(super) const FAMILY: Family = Family {
    name: "Phi-3",
    hub: &["phi3"],
    gguf: &["phi3"],
    names: &[("attn_qkv", "self_attn.qkv_proj"), ("ffn_up", "mlp.gate_up_proj")],
    from_config: |config| {
        let config = with_long_rope(config);
        let mut spec = config.decoder()?;
        (spec.fused_qkv, spec.fused_gate_up) = (true, true);
        spec.windowed = config.windowed(&spec, |_| true)?;
        Ok(spec)
    },
    from_gguf: |keys| {
        let mut spec = keys.decoder()?;
        (spec.fused_qkv, spec.fused_gate_up) = (true, true);
        // Phi-4's files have a window of 0, which is none.
        if let Some(window) = keys.find_count("attention.sliding_window")? {
            let layers = vec![true; spec.num_layers];
            spec.windowed = WindowedLayers::new(window as u32, layers);
        }
        Ok(spec)
    },
    ..PLAIN
};

/// The first releases called their factors `su` or `yarn`; the context of the first training is a field of the
/// model.
fn with_long_rope(config: &Config) -> Config {
    let config = config.with_defaults(json!({ "original_max_position_embeddings": 4096 }));
    for field in ["rope_scaling", "rope_parameters"] {
        let Some(Value::Object(parameters)) = config.get(field) else { continue };
        if ["type", "rope_type"].iter().any(|name| parameters.get(*name) == Some(&json!("yarn"))) {
            let mut renamed = parameters.clone();
            renamed.retain(|name, _| !matches!(&name[..], "type" | "rope_type"));
            renamed.insert("rope_type".to_owned(), json!("longrope"));
            return config.with_field(field, Value::Object(renamed));
        }
    }
    config
}
