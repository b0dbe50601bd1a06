//! Names of tensors: those of Llama's layout on the hub, and this crate's own.

/// Outside of layers: (own, in the file).
const WHOLE: [(&str, &str); 3] = [
    ("token_embd.weight", "model.embed_tokens.weight"),
    ("output_norm.weight", "model.norm.weight"),
    ("output.weight", "lm_head.weight"),
];

/// Inside of layer N, after `blk.N.` and `model.layers.N.`; each with `.weight` or `.bias`.
const LAYER: [(&str, &str); 9] = [
    ("attn_norm", "input_layernorm"),
    ("attn_q", "self_attn.q_proj"),
    ("attn_k", "self_attn.k_proj"),
    ("attn_v", "self_attn.v_proj"),
    ("attn_output", "self_attn.o_proj"),
    ("ffn_norm", "post_attention_layernorm"),
    ("ffn_gate", "mlp.gate_proj"),
    ("ffn_up", "mlp.up_proj"),
    ("ffn_down", "mlp.down_proj"),
];

/// Our name of a tensor of the file; its own where we know none.
pub(crate) fn to_own(name: &str) -> String {
    translate(name, "model.layers.", "blk.", |(own, file)| (file, own))
}

/// The file's name of a tensor.
pub(crate) fn to_file(name: &str) -> String {
    translate(name, "blk.", "model.layers.", |pair| pair)
}

fn translate(
    name: &str,
    from_prefix: &str,
    to_prefix: &str,
    order: fn((&'static str, &'static str)) -> (&'static str, &'static str),
) -> String {
    if let Some((_, to)) = WHOLE.map(order).into_iter().find(|(from, _)| *from == name) {
        return to.to_owned();
    }
    let layer = || {
        let (index, rest) = name.strip_prefix(from_prefix)?.split_once('.')?;
        let (part, ending) = rest.rsplit_once('.')?;
        let is_number = !index.is_empty() && index.bytes().all(|byte| byte.is_ascii_digit());
        if !is_number || !matches!(ending, "weight" | "bias") {
            return None;
        }
        let (_, to) = LAYER.map(order).into_iter().find(|(from, _)| *from == part)?;
        Some(format!("{to_prefix}{index}.{to}.{ending}"))
    };
    layer().unwrap_or_else(|| name.to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_go_both_ways() {
        for (own, file) in [
            ("token_embd.weight", "model.embed_tokens.weight"),
            ("output.weight", "lm_head.weight"),
            ("blk.17.attn_k.bias", "model.layers.17.self_attn.k_proj.bias"),
            ("blk.0.ffn_norm.weight", "model.layers.0.post_attention_layernorm.weight"),
            ("something.else", "something.else"),
        ] {
            assert_eq!(to_own(file), own);
            assert_eq!(to_file(own), file);
        }
        for odd in ["model.layers..mlp.up_proj.weight", "model.layers.1.mlp.up_proj.scale"] {
            assert_eq!(to_own(odd), odd);
        }
    }
}
