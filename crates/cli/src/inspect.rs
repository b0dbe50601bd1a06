//! `oarlock inspect`: what a checkpoint is.

use std::fmt::Write as _;
use std::io::Write as _;
use std::path::PathBuf;

use clap::Args;
use oarlock_model::{Checkpoint, Summary};
use oarlock_types::{ModelCard, SamplingDefaults, TokenizerSource};
use oarlock_worker::{Dtype, Quantization};
use serde_json::{Value, json};

/// Options of `oarlock inspect`.
#[derive(Debug, Args)]
#[command(
    after_help = "Example:\n  oarlock inspect ./Qwen3-8B --quantize q8_0 --kv-cache-tokens 65536"
)]
pub(crate) struct InspectArguments {
    /// A GGUF file (of several the first), or a folder as on the Hugging Face hub.
    path: PathBuf,
    /// What is computed with, as for `oarlock serve`: decides what weights and cache take on the CPU.
    #[arg(long, value_name = "TYPE", default_value_t = Dtype::Auto)]
    dtype: Dtype,
    /// Quantizes at load, as for `oarlock serve`.
    #[arg(long, value_name = "KIND", default_value_t = Quantization::None)]
    quantize: Quantization,
    /// Tokens that the KV cache is to hold.
    #[arg(long, value_name = "N", default_value_t = 16_384)]
    kv_cache_tokens: u32,
    /// Print a JSON object, with sizes in bytes.
    #[arg(long)]
    json: bool,
}

pub(crate) fn run(arguments: &InspectArguments) -> anyhow::Result<()> {
    let checkpoint = Checkpoint::open(&arguments.path)?.with_quantization(arguments.quantize);
    let packed = |kind| arguments.dtype.packed_kind(kind);
    let summary = checkpoint.summary(&packed, arguments.dtype.kv_element_bytes() as u64)?;
    let card = checkpoint.card()?;
    let text = if arguments.json {
        format!("{:#}\n", as_json(&summary, &card, arguments)?)
    } else {
        as_text(&summary, &card, arguments)
    };
    std::io::stdout().write_all(text.as_bytes())?;
    Ok(())
}

fn as_json(
    summary: &Summary,
    card: &ModelCard,
    options: &InspectArguments,
) -> anyhow::Result<Value> {
    let mut all = serde_json::to_value(summary)?;
    all["name"] = json!(card.name);
    all["tokenizer"] = json!(tokenizer(card));
    all["chat_template"] = json!(card.chat_template.is_some());
    all["eos_token_ids"] = json!(eos(card));
    let SamplingDefaults { temperature, top_k, top_p, min_p, repetition_penalty, max_tokens } =
        card.sampling_defaults;
    all["sampling_defaults"] = json!({
        "temperature": temperature, "top_k": top_k, "top_p": top_p, "min_p": min_p,
        "repetition_penalty": repetition_penalty, "max_tokens": max_tokens,
    });
    let degrees = all["tensor_parallel"].as_array_mut().into_iter().flatten();
    for (entry, degree) in degrees.zip(&summary.tensor_parallel) {
        let cache = degree.kv_bytes_per_token * u64::from(options.kv_cache_tokens);
        entry["kv_cache_bytes"] = json!(cache);
        entry["total_bytes"] = json!(degree.weight_bytes + cache);
    }
    all["dtype"] = json!(options.dtype.to_string());
    all["quantize"] = json!(options.quantize.to_string());
    all["kv_cache_tokens"] = json!(options.kv_cache_tokens);
    Ok(all)
}

fn as_text(summary: &Summary, card: &ModelCard, options: &InspectArguments) -> String {
    let mut text = String::new();
    let mut line = |name: &str, value: String| {
        let _ = writeln!(text, "{name:<17}{value}");
    };
    let shape = &summary.shape;
    line("name", card.name.clone());
    line("family", format!("{} ({})", summary.family, summary.architecture));
    let files =
        if summary.files == 1 { "1 file".to_owned() } else { format!("{} files", summary.files) };
    line("format", format!("{}, {files}, {}", summary.format, size(summary.bytes)));
    let active = if summary.active_parameters < summary.parameters {
        format!(", {} of them for a token", count(summary.active_parameters))
    } else {
        String::new()
    };
    line("parameters", format!("{}{active}", count(summary.parameters)));
    let types = summary.types.iter().map(|kind| {
        format!("{} {} in {} tensors", kind.name, count(kind.parameters), kind.tensors)
    });
    line("types", types.collect::<Vec<_>>().join("; "));
    line(
        "context",
        format!("{} tokens, angles scaled: {}", summary.context_length, summary.rope_scaling),
    );
    line(
        "layers",
        format!(
            "{} of width {}; {} heads over {} key heads of {}; feed-forward {}",
            shape.layers,
            shape.hidden,
            shape.heads,
            shape.kv_heads,
            shape.head_dim,
            shape.feed_forward
        ),
    );
    if let Some(experts) = &summary.experts {
        line(
            "experts",
            format!(
                "{} of {} for a token, of width {}, in {} layers",
                experts.experts_per_token, experts.experts, experts.feed_forward, experts.layers
            ),
        );
    }
    if let Some(window) = &summary.sliding_window {
        line("window", format!("{} positions in {} layers", window.positions, window.layers));
    }
    let tied = if shape.tied_output { ", output tied to the embedding" } else { "" };
    line("vocabulary", format!("{} tokens{tied}", shape.vocabulary));
    let template = if card.chat_template.is_some() { "with" } else { "without" };
    line(
        "tokenizer",
        format!(
            "{}, {template} chat template; answers end with {:?}",
            tokenizer(card).unwrap_or("none (prompts of token ids only)"),
            eos(card)
        ),
    );
    if let Some(recommended) = recommended(&card.sampling_defaults) {
        line("recommended", recommended);
    }
    text.push_str(&degrees(summary, options));
    text
}

/// A line for each degree of tensor parallelism.
fn degrees(summary: &Summary, options: &InspectArguments) -> String {
    let InspectArguments { dtype, quantize, kv_cache_tokens, .. } = options;
    let mut text = format!(
        "\nOn the CPU with --dtype {dtype} --quantize {quantize}, for each rank:\n\
         {:>17}  {:>12}  {:>12}  {:>16}  {:>12}\n",
        "--tensor-parallel", "reads", "weights", "cache of a token", "in all"
    );
    for degree in &summary.tensor_parallel {
        let cache = degree.kv_bytes_per_token * u64::from(*kv_cache_tokens);
        let _ = writeln!(
            text,
            "{:>17}  {:>12}  {:>12}  {:>16}  {:>12}",
            degree.ranks,
            size(degree.read_bytes),
            size(degree.weight_bytes),
            size(degree.kv_bytes_per_token),
            size(degree.weight_bytes + cache),
        );
    }
    let _ = writeln!(
        text,
        "In all: weights and a cache of {kv_cache_tokens} tokens (--kv-cache-tokens)."
    );
    text
}

fn tokenizer(card: &ModelCard) -> Option<&'static str> {
    card.tokenizer.as_ref().map(|source| match source {
        TokenizerSource::Bpe(_) => "byte-level BPE",
        TokenizerSource::Json(_) => "tokenizer.json",
        TokenizerSource::SentencePiece(_) => "SentencePiece",
    })
}

fn eos(card: &ModelCard) -> Vec<u32> {
    card.eos_token_ids.iter().map(|token| token.0).collect()
}

fn recommended(defaults: &SamplingDefaults) -> Option<String> {
    let float = |name: &str, value: Option<f32>| value.map(|value| format!("{name} {value}"));
    let count = |name: &str, value: Option<u32>| value.map(|value| format!("{name} {value}"));
    let all = [
        float("temperature", defaults.temperature),
        count("top_k", defaults.top_k),
        float("top_p", defaults.top_p),
        float("min_p", defaults.min_p),
        float("repetition_penalty", defaults.repetition_penalty),
        count("max_tokens", defaults.max_tokens),
    ];
    let all: Vec<String> = all.into_iter().flatten().collect();
    (!all.is_empty()).then(|| all.join(", "))
}

/// 8.19 billion as people write it.
fn count(number: u64) -> String {
    scaled(number as f64, 1000.0, ["", " K", " M", " B", " T"])
}

fn size(bytes: u64) -> String {
    scaled(bytes as f64, 1024.0, [" B", " KiB", " MiB", " GiB", " TiB"])
}

fn scaled(mut number: f64, step: f64, units: [&str; 5]) -> String {
    let mut unit = 0;
    while number >= step && unit + 1 < units.len() {
        number /= step;
        unit += 1;
    }
    let digits = if unit == 0 {
        0
    } else if number < 10.0 {
        2
    } else {
        1
    };
    format!("{number:.digits$}{}", units[unit])
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_are_short() {
        assert_eq!(count(8_190_735_360), "8.19 B");
        assert_eq!(count(171_840), "171.8 K");
        assert_eq!(count(999), "999");
        assert_eq!(size(512), "512 B");
        assert_eq!(size(16_381_470_720), "15.3 GiB");
    }
}
