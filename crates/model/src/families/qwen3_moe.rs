//! Qwen3-MoE: Qwen3 with narrow experts in most layers or all.

use super::{Family, PLAIN};
use crate::ModelError;
use crate::hugging_face::Config;
use crate::spec::{DecoderSpec, ExpertsSpec};

pub(super) const FAMILY: Family = Family {
    name: "Qwen3-MoE",
    hub: &["qwen3_moe"],
    gguf: &["qwen3moe"],
    from_config: |config| {
        let mut spec = config.decoder()?;
        spec.head_norms = true;
        if config.flag("use_sliding_window")? {
            spec.windowed = config.windowed(&spec, |_| true)?;
        }
        spec.experts = Some(experts(config, &spec)?);
        Ok(spec)
    },
    from_gguf: |keys| {
        let mut spec = keys.decoder()?;
        spec.head_norms = true;
        // No key says it, and all released models do so.
        let experts = keys.experts(&spec, true)?;
        spec.experts = Some(experts.ok_or_else(|| keys.wrong("expert_count", "missing"))?);
        Ok(spec)
    },
    ..PLAIN
};

fn experts(config: &Config, spec: &DecoderSpec) -> Result<ExpertsSpec, ModelError> {
    let field =
        if config.get("num_experts").is_some() { "num_experts" } else { "num_local_experts" };
    let dense = config.layers("mlp_only_layers")?;
    let step = config.find_positive("decoder_sparse_step")?.unwrap_or(1);
    let has_experts = |layer: usize| !dense.contains(&layer) && (layer + 1).is_multiple_of(step);
    Ok(ExpertsSpec {
        num_experts: config.positive(field)?,
        top_k: config.positive("num_experts_per_tok")?,
        normalize: config.flag("norm_topk_prob")?,
        feed_forward: config.positive("moe_intermediate_size")?,
        layers: (0..spec.num_layers).map(has_experts).collect(),
    })
}
