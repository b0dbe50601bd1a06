//! Names of tensors: those of Llama's layout on the hub, what families call otherwise, and this crate's own.

use crate::families::Family;

/// Outside of layers: (own, in the file).
const WHOLE: [(&str, &str); 3] = [
    ("token_embd.weight", "model.embed_tokens.weight"),
    ("output_norm.weight", "model.norm.weight"),
    ("output.weight", "lm_head.weight"),
];

/// Inside of layer N, after `blk.N.` and `model.layers.N.`; each with `.weight` or `.bias`. A `*` is the
/// index of an expert.
const LAYER: [(&str, &str); 15] = [
    ("attn_norm", "input_layernorm"),
    ("attn_q", "self_attn.q_proj"),
    ("attn_k", "self_attn.k_proj"),
    ("attn_v", "self_attn.v_proj"),
    ("attn_q_norm", "self_attn.q_norm"),
    ("attn_k_norm", "self_attn.k_norm"),
    ("attn_output", "self_attn.o_proj"),
    ("ffn_norm", "post_attention_layernorm"),
    ("ffn_gate", "mlp.gate_proj"),
    ("ffn_up", "mlp.up_proj"),
    ("ffn_down", "mlp.down_proj"),
    ("ffn_gate_inp", "mlp.gate"),
    ("ffn_gate.*", "mlp.experts.*.gate_proj"),
    ("ffn_up.*", "mlp.experts.*.up_proj"),
    ("ffn_down.*", "mlp.experts.*.down_proj"),
];

/// The same of tensors that hold all experts of a layer, which have no ending in the file.
const STACKED: [(&str, &str); 2] = [
    ("ffn_gate_up_exps.weight", "mlp.experts.gate_up_proj"),
    ("ffn_down_exps.weight", "mlp.experts.down_proj"),
];

/// Where the text model of a model with images is.
const TEXT_PREFIXES: [(&str, &str); 2] =
    [("language_model.", ""), ("model.language_model.", "model.")];

/// The names of a family.
#[derive(Clone, Copy)]
pub(crate) struct Names(pub(crate) &'static Family);

impl Names {
    /// Our name of a tensor of the file, its own where we know none; `None` of one that is not the decoder's or
    /// follows from the configuration.
    pub(crate) fn to_own(self, name: &str) -> Option<String> {
        let is_ignored = self.0.ignored.iter().any(|prefix| name.starts_with(prefix));
        if is_ignored || name.ends_with(".rotary_emb.inv_freq") {
            return None;
        }
        let prefix = TEXT_PREFIXES
            .iter()
            .find_map(|(long, short)| name.strip_prefix(long).map(|rest| format!("{short}{rest}")));
        let short = prefix.as_deref().unwrap_or(name);
        let own = self.translate(short, "model.layers.", "blk.", |(own, file)| (file, own));
        Some(own.unwrap_or_else(|| name.to_owned()))
    }

    /// The file's name of a tensor.
    pub(crate) fn to_file(self, name: &str) -> String {
        let file = self.translate(name, "blk.", "model.layers.", |pair| pair);
        file.unwrap_or_else(|| name.to_owned())
    }

    fn translate(
        self,
        name: &str,
        from_prefix: &str,
        to_prefix: &str,
        order: for<'a> fn((&'a str, &'a str)) -> (&'a str, &'a str),
    ) -> Option<String> {
        if let Some((_, to)) = WHOLE.map(order).into_iter().find(|(from, _)| *from == name) {
            return Some(to.to_owned());
        }
        let (index, rest) = name.strip_prefix(from_prefix)?.split_once('.')?;
        if index.is_empty() || !index.bytes().all(|byte| byte.is_ascii_digit()) {
            return None;
        }
        if let Some((_, to)) = STACKED.map(order).into_iter().find(|(from, _)| *from == rest) {
            return Some(format!("{to_prefix}{index}.{to}"));
        }
        let (part, ending) = rest.rsplit_once('.')?;
        if !matches!(ending, "weight" | "bias") {
            return None;
        }
        let pairs = self.0.names.iter().chain(&LAYER).map(|pair| order(*pair));
        let to = pairs.into_iter().find_map(|(from, to)| replaced(part, from, to))?;
        Some(format!("{to_prefix}{index}.{to}.{ending}"))
    }
}

/// `to` with what stands for its `*`, if `part` is `from`.
fn replaced(part: &str, from: &str, to: &str) -> Option<String> {
    let Some((before, after)) = from.split_once('*') else {
        return (part == from).then(|| to.to_owned());
    };
    let index = part.strip_prefix(before)?.strip_suffix(after)?;
    let is_number = !index.is_empty() && index.bytes().all(|byte| byte.is_ascii_digit());
    is_number.then(|| to.replacen('*', index, 1))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::families;

    fn names(model_type: &str) -> Names {
        Names(families::of_model_type(model_type).unwrap())
    }

    #[test]
    fn names_go_both_ways() {
        for (model_type, own, file) in [
            ("llama", "token_embd.weight", "model.embed_tokens.weight"),
            ("llama", "output.weight", "lm_head.weight"),
            ("qwen2", "blk.17.attn_k.bias", "model.layers.17.self_attn.k_proj.bias"),
            ("llama", "blk.0.ffn_norm.weight", "model.layers.0.post_attention_layernorm.weight"),
            ("gemma2", "blk.0.ffn_norm.weight", "model.layers.0.pre_feedforward_layernorm.weight"),
            (
                "gemma3",
                "blk.3.post_attention_norm.weight",
                "model.layers.3.post_attention_layernorm.weight",
            ),
            ("phi3", "blk.0.ffn_up.weight", "model.layers.0.mlp.gate_up_proj.weight"),
            (
                "mixtral",
                "blk.1.ffn_up.12.weight",
                "model.layers.1.block_sparse_moe.experts.12.w3.weight",
            ),
            (
                "qwen3_moe",
                "blk.1.ffn_down.7.weight",
                "model.layers.1.mlp.experts.7.down_proj.weight",
            ),
            ("qwen3_moe", "blk.1.ffn_gate_inp.weight", "model.layers.1.mlp.gate.weight"),
            (
                "qwen3_moe",
                "blk.1.ffn_gate_up_exps.weight",
                "model.layers.1.mlp.experts.gate_up_proj",
            ),
            ("llama", "something.else", "something.else"),
        ] {
            assert_eq!(names(model_type).to_own(file).as_deref(), Some(own));
            assert_eq!(names(model_type).to_file(own), file);
        }
        let odd = [
            "model.layers..mlp.up_proj.weight",
            "model.layers.1.mlp.up_proj.scale",
            "model.layers.1.mlp.experts.x.up_proj.weight",
            "model.layers.1.mlp.experts..up_proj.weight",
        ];
        for odd in odd {
            assert_eq!(names("llama").to_own(odd).as_deref(), Some(odd));
        }
    }

    #[test]
    fn text_models_are_found_inside_of_others() {
        let own = |name| names("gemma3").to_own(name);
        for name in [
            "language_model.model.layers.2.mlp.up_proj.weight",
            "model.language_model.layers.2.mlp.up_proj.weight",
        ] {
            assert_eq!(own(name).as_deref(), Some("blk.2.ffn_up.weight"));
        }
        assert_eq!(own("vision_tower.vision_model.post_layernorm.weight"), None);
        assert_eq!(names("llama").to_own("vision_tower.x").as_deref(), Some("vision_tower.x"));
        assert_eq!(own("model.layers.0.self_attn.rotary_emb.inv_freq"), None);
    }
}
