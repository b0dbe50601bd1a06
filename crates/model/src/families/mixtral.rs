//! Mixtral: Mistral with experts in every layer, whose weights add up to one (Jiang et al. 2024).

use serde_json::json;

use super::{Family, PLAIN};
use crate::spec::ExpertsSpec;

pub(super) const FAMILY: Family = Family {
    name: "Mixtral",
    hub: &["mixtral"],
    // GGUF files are Llama's.
    names: &[
        ("ffn_gate_inp", "block_sparse_moe.gate"),
        ("ffn_gate.*", "block_sparse_moe.experts.*.w1"),
        ("ffn_up.*", "block_sparse_moe.experts.*.w3"),
        ("ffn_down.*", "block_sparse_moe.experts.*.w2"),
    ],
    from_config: |config| {
        let config = config.with_defaults(json!({
            "rope_theta": 1_000_000.0, "num_key_value_heads": 8, "num_local_experts": 8,
            "num_experts_per_tok": 2,
        }));
        let mut spec = config.decoder()?;
        spec.windowed = config.windowed(&spec, |_| true)?;
        spec.experts = Some(ExpertsSpec {
            num_experts: config.positive("num_local_experts")?,
            top_k: config.positive("num_experts_per_tok")?,
            normalize: true,
            feed_forward: spec.feed_forward,
            layers: vec![true; spec.num_layers],
        });
        Ok(spec)
    },
    ..PLAIN
};
