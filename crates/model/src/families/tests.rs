//! What the fields and keys of both formats mean.

use oarlock_backend::Activation;
use oarlock_testkit::GgufWriter;
use serde_json::{Value, json};

use super::*;
use crate::gguf::Model;
use crate::rope::{Rope, RopeScaling};

/// A folder's description, with the fields that every configuration has.
fn of_fields(model_type: &str, fields: Value) -> Result<DecoderSpec, ModelError> {
    let config = Config::of(fields).with_defaults(json!({
        "model_type": model_type, "hidden_size": 128, "num_hidden_layers": 4,
        "num_attention_heads": 4, "num_key_value_heads": 2, "intermediate_size": 256, "vocab_size": 100,
        "max_position_embeddings": 131_072, "rms_norm_eps": 1e-6, "num_local_experts": 8,
    }));
    of_config(&config).map(|(_, spec)| spec)
}

fn frequencies(rope: &Rope, positions: usize) -> (Vec<f32>, f32) {
    rope.frequencies(positions, crate::BufferType::Float32)
}

/// Some of the frequencies that transformers 5.19 computes, and its factor.
fn assert_rope(rope: &Rope, positions: usize, want: &[(usize, f32)], factor: f32) {
    let (got, by) = frequencies(rope, positions);
    assert!((by - factor).abs() < 1e-6, "factor {by}, expected {factor}");
    for (pair, want) in want {
        let got = got[*pair];
        assert!((got / want - 1.0).abs() < 2e-6, "pair {pair}: {got}, expected {want}");
    }
}

#[test]
fn scaled_angles_are_those_of_transformers() {
    let llama3 = json!({
        "rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
        "original_max_position_embeddings": 8192,
    });
    let want =
        [(0, 1.0), (7, 0.003_211_446), (8, 0.000_524_846), (9, 7.784_655e-5), (15, 5.677_088e-7)];
    // The older fields, and the newer one.
    let old = json!({ "rope_theta": 500_000.0, "rope_scaling": llama3 });
    let mut new = llama3;
    new["rope_theta"] = json!(500_000.0);
    for fields in [old, json!({ "rope_parameters": new })] {
        assert_rope(&of_fields("llama", fields).unwrap().rope, 1000, &want, 1.0);
    }
    let yarn = json!({
        "rope_theta": 1_000_000.0,
        "rope_scaling": {"type": "yarn", "factor": 4.0, "original_max_position_embeddings": 32_768},
    });
    let want = [(5, 0.013_335_215), (6, 0.004_779_901), (8, 0.000_55), (15, 5.928_434_4e-7)];
    assert_rope(&of_fields("qwen2", yarn).unwrap().rope, 1000, &want, 1.138_629_4);
    let yarn = json!({"rope_parameters": {
        "rope_type": "yarn", "rope_theta": 10_000.0, "factor": 16.0, "beta_fast": 8.0, "beta_slow": 0.5,
        "original_max_position_embeddings": 64, "mscale": 1.0, "mscale_all_dim": 0.5, "truncate": false,
    }});
    let want = [(0, 1.0), (1, 0.498_817_2), (3, 0.088_513_49), (6, 0.001_976_423_7)];
    assert_rope(&of_fields("qwen2", yarn).unwrap().rope, 1000, &want, 1.121_751_1);
}

#[test]
fn long_rope_depends_on_what_the_server_allows() {
    let short: Vec<f64> = (0..12).map(|i| 1.0 + 0.1 * f64::from(i)).collect();
    let long: Vec<f64> = (0..12).map(|i| 2.0 + f64::from(i)).collect();
    for kind in ["longrope", "su", "yarn"] {
        let spec = of_fields(
            "phi3",
            json!({
                "partial_rotary_factor": 0.75, "original_max_position_embeddings": 4096,
                "rope_scaling": {"type": kind, "short_factor": short, "long_factor": long},
            }),
        );
        let rope = spec.unwrap().rope;
        assert_eq!(rope.rotated, 24);
        let factor = 1.190_238;
        assert_rope(&rope, 5000, &[(0, 0.5), (1, 0.154_719_64), (11, 1.657_257e-5)], factor);
        assert_rope(&rope, 4096, &[(0, 1.0), (1, 0.421_962_6), (11, 0.000_102_592_1)], factor);
    }
}

#[test]
fn windows_are_on_the_layers_that_have_them() {
    let layers = |model_type, fields| {
        let windowed = of_fields(model_type, fields).unwrap().windowed;
        windowed.map(|windowed| (windowed.window, windowed.layers))
    };
    let all = |window| Some((window, vec![true; 4]));
    assert_eq!(layers("mistral", json!({})), all(4096));
    assert_eq!(layers("mistral", json!({ "sliding_window": null })), None);
    assert_eq!(layers("mixtral", json!({ "num_experts_per_tok": 2 })), None);
    let fields = json!({ "num_experts_per_tok": 2, "sliding_window": 9 });
    assert_eq!(layers("mixtral", fields), all(9));
    assert_eq!(layers("phi3", json!({ "sliding_window": 2047 })), all(2047));
    assert_eq!(layers("llama", json!({ "sliding_window": 9 })), None);
    let qwen = |first: u32| json!({"use_sliding_window": true, "sliding_window": 9, "max_window_layers": first});
    assert_eq!(layers("qwen2", qwen(3)), Some((9, vec![false, false, false, true])));
    assert_eq!(layers("qwen3", qwen(28)), None);
    assert_eq!(layers("qwen2", json!({ "sliding_window": 9 })), None);
    assert_eq!(layers("qwen2", qwen(0)), all(9));
    assert_eq!(layers("gemma2", json!({})), Some((4096, vec![true, false, true, false])));
    let pattern = json!({ "sliding_window": 512, "sliding_window_pattern": 2 });
    assert_eq!(layers("gemma3_text", pattern), Some((512, vec![true, false, true, false])));
    let types = json!(["full_attention", "sliding_attention", "full_attention", "full_attention"]);
    let fields = json!({ "sliding_window": 7, "layer_types": types });
    assert_eq!(layers("gemma3_text", fields), Some((7, vec![false, true, false, false])));
}

#[test]
fn experts_are_in_the_layers_that_have_them() {
    let fields = json!({
        "num_experts": 8, "num_experts_per_tok": 2, "moe_intermediate_size": 48, "decoder_sparse_step": 2,
        "mlp_only_layers": [3], "norm_topk_prob": false,
    });
    let spec = of_fields("qwen3_moe", fields).unwrap();
    let experts = spec.experts.as_ref().unwrap();
    assert_eq!(experts.layers, [false, true, false, false]);
    assert!(!experts.normalize && spec.has_dense_layers() && spec.head_norms);
    let spec = of_fields("mixtral", json!({ "num_experts_per_tok": 2 })).unwrap();
    let experts = spec.experts.as_ref().unwrap();
    assert!(experts.normalize && !spec.has_dense_layers());
    assert_eq!(experts.feed_forward, 256);
    // What Mixtral's class has where a folder leaves it out.
    let spec = of_fields("mixtral", json!({})).unwrap();
    assert_eq!((spec.rope.theta, spec.experts.unwrap().top_k), (1e6, 2));
    let error = of_fields("qwen3_moe", json!({})).unwrap_err().to_string();
    assert!(error.contains("num_experts_per_tok") && error.contains("missing"), "{error}");
}

#[test]
fn biases_and_ties_are_what_the_fields_say() {
    let spec = of_fields("llama", json!({ "attention_bias": true, "mlp_bias": true })).unwrap();
    assert!(spec.qkv_bias && spec.attention_output_bias && spec.feed_forward_bias);
    let spec = of_fields("qwen2", json!({})).unwrap();
    assert!(spec.qkv_bias && !spec.attention_output_bias);
    assert_eq!(spec.tied_output, Some(false));
    assert_eq!(of_fields("gemma2", json!({})).unwrap().tied_output, Some(true));
    assert_eq!(of_fields("qwen3", json!({})).unwrap().head_dim, 128);
}

/// A Gemma 3 with images leaves most of its text model's fields out.
#[test]
fn text_models_are_found_inside_of_others() {
    let spec = of_fields(
        "gemma3",
        json!({
            "text_config": {
                "model_type": "gemma3_text", "hidden_size": 2560, "intermediate_size": 10_240,
                "num_hidden_layers": 34, "sliding_window": 1024,
                "rope_scaling": {"factor": 8.0, "rope_type": "linear"},
            },
            "vision_config": {"hidden_size": 1152},
        }),
    );
    let spec = spec.unwrap();
    assert_eq!((spec.hidden, spec.num_heads, spec.num_kv_heads, spec.head_dim), (2560, 8, 4, 256));
    assert_eq!((spec.vocab_size, spec.context_length), (262_208, 131_072));
    assert_eq!(spec.rope.scaling, RopeScaling::Linear { factor: 8.0 });
    assert_eq!((spec.rope.theta, spec.attention_scale, spec.norm_offset), (1e6, 1.0 / 16.0, 1.0));
    let windowed = spec.windowed.unwrap();
    let rope = windowed.rope.unwrap();
    assert_eq!((rope.theta, rope.scaling), (10_000.0, RopeScaling::None));
    assert_eq!(windowed.layers.iter().filter(|windowed| !**windowed).count(), 5);
    let newer = of_fields(
        "gemma3_text",
        json!({"rope_parameters": {
            "full_attention": {"rope_type": "linear", "factor": 2.0, "rope_theta": 3e6},
            "sliding_attention": {"rope_type": "default", "rope_theta": 500.0},
        }}),
    );
    let newer = newer.unwrap();
    let windowed = newer.windowed.unwrap().rope.unwrap();
    assert_eq!((newer.rope.theta, newer.rope.scaling), (3e6, RopeScaling::Linear { factor: 2.0 }));
    assert_eq!((windowed.theta, windowed.scaling), (500.0, RopeScaling::None));
}

fn gemma3_file() -> GgufWriter {
    gemma3_file_of(13, 64, 4)
}

fn gemma3_file_of(num_layers: u32, hidden: u32, num_heads: u32) -> GgufWriter {
    GgufWriter::default()
        .string("general.architecture", "gemma3")
        .u32("gemma3.block_count", num_layers)
        .u32("gemma3.embedding_length", hidden)
        .u32("gemma3.attention.head_count", num_heads)
        .u32("gemma3.attention.head_count_kv", 1)
        .u32("gemma3.attention.key_length", 32)
        .u32("gemma3.feed_forward_length", 128)
        .u32("gemma3.vocab_size", 100)
        .u32("gemma3.context_length", 512)
        .f32("gemma3.attention.layer_norm_rms_epsilon", 1e-6)
}

fn of_file(file: GgufWriter) -> Result<DecoderSpec, ModelError> {
    let bytes = file.finish();
    let model = Model::of_bytes(&bytes).unwrap();
    of_gguf(&model.keys(vec![&bytes])?).map(|(_, spec)| spec)
}

#[test]
fn constants_fill_what_a_gemma3_file_leaves_out() {
    let spec = of_file(gemma3_file().u32("gemma3.attention.sliding_window", 7)).unwrap();
    assert_eq!((spec.embedding_scale, spec.attention_scale), (8.0, 1.0 / 32_f32.sqrt()));
    assert_eq!((spec.rope.theta, &spec.rope.scaling), (1e6, &RopeScaling::None));
    assert_eq!((spec.attention_soft_cap, spec.logit_soft_cap), (None, None));
    assert_eq!((spec.activation, spec.norm_offset), (Activation::GeluTanh, 0.0));
    let windowed = spec.windowed.unwrap();
    assert_eq!((windowed.window, windowed.rope.unwrap().theta), (7, 10_000.0));
    let whole: Vec<usize> = (0..13).filter(|layer| !windowed.layers[*layer]).collect();
    assert_eq!(whole, [5, 11]);
    assert_eq!(of_file(gemma3_file()).unwrap().windowed, None);
    // The 27B model's scale is by width per head.
    let large = gemma3_file_of(62, 5376, 32);
    assert_eq!(of_file(large).unwrap().attention_scale, 1.0 / 168_f32.sqrt());
}

#[test]
fn keys_replace_constants() {
    let spec = of_file(
        gemma3_file()
            .u32("gemma3.attention.sliding_window", 7)
            .u32("gemma3.attention.sliding_window_pattern", 2)
            .f32("gemma3.rope.freq_base_swa", 500.0)
            .f32("gemma3.rope.freq_base", 2e6)
            .string("gemma3.rope.scaling.type", "linear")
            .f32("gemma3.rope.scaling.factor", 8.0)
            .f32("gemma3.attention.scale", 0.25)
            .f32("gemma3.attn_logit_softcapping", 50.0)
            .f32("gemma3.final_logit_softcapping", 0.0),
    );
    let spec = spec.unwrap();
    let windowed = spec.windowed.unwrap();
    assert_eq!(windowed.layers[..4], [true, false, true, false]);
    let rope = windowed.rope.unwrap();
    assert_eq!((rope.theta, rope.scaling), (500.0, RopeScaling::None));
    assert_eq!((spec.rope.theta, spec.rope.scaling), (2e6, RopeScaling::Linear { factor: 8.0 }));
    assert_eq!(spec.attention_scale, 0.25);
    assert_eq!((spec.attention_soft_cap, spec.logit_soft_cap), (Some(50.0), None));
}

#[test]
fn what_cannot_be_is_refused_by_its_key() {
    let window = || gemma3_file().u32("gemma3.attention.sliding_window", 7);
    let refused = |file| of_file(file).unwrap_err().to_string();
    let pattern = |kind, value: &[u8]| {
        refused(window().raw_key("gemma3.attention.sliding_window_pattern", kind, value))
    };
    assert!(pattern(4, &[0; 4]).contains("must not be 0"));
    let flags = [&7_u32.to_le_bytes()[..], &2_u64.to_le_bytes(), &[1, 0]].concat();
    assert!(pattern(9, &flags).contains("2 flags for 13 layers"));
    let scaled = |kind| gemma3_file().string("gemma3.rope.scaling.type", kind);
    assert!(refused(scaled("spiral")).contains("spiral"));
    assert!(refused(scaled("yarn")).contains("rope.scaling.factor"));
    let zero = scaled("linear").f32("gemma3.rope.scaling.factor", 0.0);
    assert!(refused(zero).contains("rope.scaling.factor"));
    let widths = gemma3_file().u32("gemma3.attention.value_length", 16);
    assert!(refused(widths).contains("value_length"));
    let cap = gemma3_file().f32("gemma3.final_logit_softcapping", -1.0);
    assert!(refused(cap).contains("negative"));
    let unknown = GgufWriter::default().string("general.architecture", "rwkv");
    assert!(refused(unknown).contains("llama, qwen2, qwen3, qwen3moe, gemma2, gemma3, phi3"));
}
