//! The model card of a GGUF file: tokenizer, chat template, special tokens.

use oarlock_types::{
    BpeVocabulary, ModelCard, SamplingDefaults, SentencePieceVocabulary, TokenId, TokenKind,
    TokenizerSource,
};

use crate::ModelError;
use crate::gguf::{Metadata, Model, Value};
use crate::spec::DecoderSpec;
use crate::tensors::num_parameters;

/// Control tokens by which known chat models end an answer. A file names one of them as its end of
/// sequence and often forgets the others.
const END_OF_GENERATION: [&str; 8] = [
    "<|im_end|>",
    "<|endoftext|>",
    "<|eot_id|>",
    "<|end_of_text|>",
    "<|end|>",
    "<end_of_turn>",
    "<|eom_id|>",
    "</s>",
];

pub(crate) fn read(model: &Model, spec: &DecoderSpec) -> Result<ModelCard, ModelError> {
    let metadata = &model.metadata;
    let tokenizer = tokenizer(metadata)?;
    let (texts, kinds) = match &tokenizer {
        Some(TokenizerSource::Bpe(vocabulary)) => (&vocabulary.tokens[..], &vocabulary.kinds[..]),
        Some(TokenizerSource::SentencePiece(pieces)) => (&pieces.tokens[..], &pieces.kinds[..]),
        _ => (&[][..], &[][..]),
    };
    let eos_token_ids = eos_token_ids(metadata, texts, kinds)?;
    // Where the file is silent, SentencePiece models want their first token, and others do not.
    let by_default = match &tokenizer {
        Some(TokenizerSource::SentencePiece(_)) => true,
        // Llama 3 and Mistral's newer ones, whose files leave it out.
        Some(TokenizerSource::Bpe(vocabulary)) => {
            matches!(&vocabulary.pre[..], "llama3" | "llama-v3" | "llama-bpe" | "tekken")
        }
        _ => false,
    };
    let add_bos = metadata.find_bool("tokenizer.ggml.add_bos_token")?.unwrap_or(by_default);
    let architecture = metadata.str("general.architecture")?.to_owned();
    Ok(ModelCard {
        name: metadata.find_str("general.name")?.unwrap_or(&architecture).to_owned(),
        architecture,
        vocab_size: spec.vocab_size as u32,
        context_length: spec.context_length as u32,
        num_parameters: num_parameters(&model.tensors),
        tokenizer,
        chat_template: metadata.find_str("tokenizer.chat_template")?.map(str::to_owned),
        eos_token_ids,
        bos_token_id: metadata.find_u32("tokenizer.ggml.bos_token_id")?.map(TokenId),
        add_bos,
        sampling_defaults: sampling_defaults(metadata)?,
    })
}

/// Of files that were converted with the model's generation configuration.
fn sampling_defaults(metadata: &Metadata) -> Result<SamplingDefaults, ModelError> {
    let float = |name: &str, least: f32, most: f32| {
        let key = format!("general.sampling.{name}");
        match metadata.find_f32(&key)? {
            Some(value) if !(least..=most).contains(&value) => {
                Err(ModelError::metadata(key, format!("{value} is not from {least} to {most}")))
            }
            value => Ok(value),
        }
    };
    Ok(SamplingDefaults {
        temperature: float("temp", 0.0, 2.0)?,
        // -1 keeps all tokens, as 0 does.
        top_k: match metadata.get("general.sampling.top_k") {
            Some(Value::Signed(-1)) => Some(0),
            _ => metadata.find_u32("general.sampling.top_k")?,
        },
        top_p: float("top_p", f32::MIN_POSITIVE, 1.0)?,
        min_p: float("min_p", 0.0, 1.0)?,
        repetition_penalty: float("penalty_repeat", 0.01, 100.0)?,
        max_tokens: None,
    })
}

fn tokenizer(metadata: &Metadata) -> Result<Option<TokenizerSource>, ModelError> {
    const MODEL: &str = "tokenizer.ggml.model";
    let model = match metadata.find_str(MODEL)? {
        None | Some("none" | "no_vocab") => return Ok(None),
        Some(model) => model,
    };
    let tokens = metadata.strings("tokenizer.ggml.tokens")?;
    let kinds = token_kinds(metadata, tokens.len())?;
    Ok(Some(match model {
        "gpt2" => TokenizerSource::Bpe(BpeVocabulary {
            pre: metadata.str("tokenizer.ggml.pre")?.to_owned(),
            tokens,
            kinds,
            merges: metadata.strings("tokenizer.ggml.merges")?,
        }),
        "llama" => TokenizerSource::SentencePiece(SentencePieceVocabulary {
            scores: scores(metadata, tokens.len())?,
            tokens,
            kinds,
            add_space_prefix: metadata
                .find_bool("tokenizer.ggml.add_space_prefix")?
                .unwrap_or(true),
        }),
        other => {
            let reason = format!(
                "tokenizer {other} is not supported; byte-level BPE (gpt2) and SentencePiece's BPE \
                 (llama) are"
            );
            return Err(ModelError::metadata(MODEL, reason));
        }
    }))
}

fn scores(metadata: &Metadata, num_tokens: usize) -> Result<Vec<f32>, ModelError> {
    const KEY: &str = "tokenizer.ggml.scores";
    let raw = metadata.find_array(KEY)?.ok_or_else(|| ModelError::metadata(KEY, "missing"))?;
    if raw.len() != num_tokens {
        let reason = format!("{} scores for {num_tokens} tokens", raw.len());
        return Err(ModelError::metadata(KEY, reason));
    }
    let score = |value: &Value| match value {
        Value::Float(score) if !score.is_nan() => Ok(*score as f32),
        other => Err(ModelError::metadata(KEY, format!("{other:?} is no score"))),
    };
    raw.iter().map(score).collect()
}

fn token_kinds(metadata: &Metadata, num_tokens: usize) -> Result<Vec<TokenKind>, ModelError> {
    const KEY: &str = "tokenizer.ggml.token_type";
    let Some(raw) = metadata.find_array(KEY)? else {
        return Ok(vec![TokenKind::Normal; num_tokens]);
    };
    if raw.len() != num_tokens {
        let reason = format!("{} types for {num_tokens} tokens", raw.len());
        return Err(ModelError::metadata(KEY, reason));
    }
    let kind = |value: &Value| match value {
        Value::Signed(1) | Value::Unsigned(1) => Ok(TokenKind::Normal),
        Value::Signed(2) | Value::Unsigned(2) => Ok(TokenKind::Unknown),
        Value::Signed(3) | Value::Unsigned(3) => Ok(TokenKind::Control),
        Value::Signed(4) | Value::Unsigned(4) => Ok(TokenKind::UserDefined),
        Value::Signed(5) | Value::Unsigned(5) => Ok(TokenKind::Unused),
        Value::Signed(6) | Value::Unsigned(6) => Ok(TokenKind::Byte),
        other => Err(ModelError::metadata(KEY, format!("token type {other:?} is unknown"))),
    };
    raw.iter().map(kind).collect()
}

fn eos_token_ids(
    metadata: &Metadata,
    texts: &[String],
    kinds: &[TokenKind],
) -> Result<Vec<TokenId>, ModelError> {
    let mut ids = Vec::new();
    for key in [
        "tokenizer.ggml.eos_token_id",
        "tokenizer.ggml.eot_token_id",
        "tokenizer.ggml.eom_token_id",
    ] {
        ids.extend(metadata.find_u32(key)?.map(TokenId));
    }
    let ends = |(text, kind): (&String, &TokenKind)| {
        *kind == TokenKind::Control && END_OF_GENERATION.contains(&text.as_str())
    };
    let known = texts.iter().zip(kinds).enumerate();
    ids.extend(known.filter(|(_, entry)| ends(*entry)).map(|(id, _)| TokenId(id as u32)));
    ids.sort_unstable();
    ids.dedup();
    Ok(ids)
}
