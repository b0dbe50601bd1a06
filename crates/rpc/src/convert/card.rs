//! Model cards, fingerprints, worker limits and descriptions.

use oarlock_types as t;

use super::{ConvertError, raw_tokens, required, token_ids};
use crate::proto as p;

impl From<&t::ModelCard> for p::ModelCard {
    fn from(card: &t::ModelCard) -> Self {
        let tokenizer = card.tokenizer.as_ref().map(|source| match source {
            t::TokenizerSource::Bpe(vocabulary) => {
                p::model_card::Tokenizer::Bpe(p::BpeVocabulary {
                    pre: vocabulary.pre.clone(),
                    tokens: vocabulary.tokens.clone(),
                    kinds: vocabulary.kinds.iter().map(|kind| *kind as u8).collect(),
                    merges: vocabulary.merges.clone(),
                })
            }
            t::TokenizerSource::Json(json) => p::model_card::Tokenizer::Json(json.clone()),
            t::TokenizerSource::SentencePiece(vocabulary) => {
                p::model_card::Tokenizer::SentencePiece(p::SentencePieceVocabulary {
                    tokens: vocabulary.tokens.clone(),
                    scores: vocabulary.scores.clone(),
                    kinds: vocabulary.kinds.iter().map(|kind| *kind as u8).collect(),
                    add_space_prefix: vocabulary.add_space_prefix,
                })
            }
        });
        Self {
            architecture: card.architecture.clone(),
            name: card.name.clone(),
            vocab_size: card.vocab_size,
            context_length: card.context_length,
            num_parameters: card.num_parameters,
            tokenizer,
            chat_template: card.chat_template.clone(),
            eos_token_ids: raw_tokens(&card.eos_token_ids),
            bos_token_id: card.bos_token_id.map(|token| token.0),
            add_bos: card.add_bos,
            sampling_defaults: Some(card.sampling_defaults.into()),
        }
    }
}

impl From<t::SamplingDefaults> for p::SamplingDefaults {
    fn from(defaults: t::SamplingDefaults) -> Self {
        let t::SamplingDefaults {
            temperature,
            top_k,
            top_p,
            min_p,
            repetition_penalty,
            max_tokens,
        } = defaults;
        Self { temperature, top_k, top_p, min_p, repetition_penalty, max_tokens }
    }
}

impl From<p::SamplingDefaults> for t::SamplingDefaults {
    fn from(defaults: p::SamplingDefaults) -> Self {
        let p::SamplingDefaults {
            temperature,
            top_k,
            top_p,
            min_p,
            repetition_penalty,
            max_tokens,
        } = defaults;
        Self { temperature, top_k, top_p, min_p, repetition_penalty, max_tokens }
    }
}

impl TryFrom<p::ModelCard> for t::ModelCard {
    type Error = ConvertError;

    fn try_from(card: p::ModelCard) -> Result<Self, ConvertError> {
        let tokenizer = match card.tokenizer {
            Some(p::model_card::Tokenizer::Bpe(bpe)) => {
                Some(t::TokenizerSource::Bpe(vocabulary(bpe)?))
            }
            Some(p::model_card::Tokenizer::Json(json)) => Some(t::TokenizerSource::Json(json)),
            Some(p::model_card::Tokenizer::SentencePiece(pieces)) => {
                Some(t::TokenizerSource::SentencePiece(sentence_piece(pieces)?))
            }
            None => None,
        };
        Ok(Self {
            architecture: card.architecture,
            name: card.name,
            vocab_size: card.vocab_size,
            context_length: card.context_length,
            num_parameters: card.num_parameters,
            tokenizer,
            chat_template: card.chat_template,
            eos_token_ids: token_ids(card.eos_token_ids),
            bos_token_id: card.bos_token_id.map(t::TokenId),
            add_bos: card.add_bos,
            sampling_defaults: card.sampling_defaults.map(Into::into).unwrap_or_default(),
        })
    }
}

fn sentence_piece(
    pieces: p::SentencePieceVocabulary,
) -> Result<t::SentencePieceVocabulary, ConvertError> {
    Ok(t::SentencePieceVocabulary {
        kinds: pieces.kinds.iter().map(|kind| token_kind(*kind)).collect::<Result<_, _>>()?,
        tokens: pieces.tokens,
        scores: pieces.scores,
        add_space_prefix: pieces.add_space_prefix,
    })
}

fn vocabulary(bpe: p::BpeVocabulary) -> Result<t::BpeVocabulary, ConvertError> {
    let kinds = bpe.kinds.iter().map(|kind| token_kind(*kind)).collect::<Result<_, _>>()?;
    Ok(t::BpeVocabulary { pre: bpe.pre, tokens: bpe.tokens, kinds, merges: bpe.merges })
}

fn token_kind(raw: u8) -> Result<t::TokenKind, ConvertError> {
    Ok(match raw {
        1 => t::TokenKind::Normal,
        2 => t::TokenKind::Unknown,
        3 => t::TokenKind::Control,
        4 => t::TokenKind::UserDefined,
        5 => t::TokenKind::Unused,
        6 => t::TokenKind::Byte,
        _ => return Err(ConvertError::OutOfRange { field: "kinds", value: raw.into() }),
    })
}

impl From<&t::Fingerprint> for p::Fingerprint {
    fn from(fingerprint: &t::Fingerprint) -> Self {
        Self {
            weights: fingerprint.weights.clone(),
            build: fingerprint.build.clone(),
            instruction_set: fingerprint.instruction_set.clone(),
        }
    }
}

impl From<p::Fingerprint> for t::Fingerprint {
    fn from(fingerprint: p::Fingerprint) -> Self {
        Self {
            weights: fingerprint.weights,
            build: fingerprint.build,
            instruction_set: fingerprint.instruction_set,
        }
    }
}

impl From<t::LoadProgress> for p::LoadProgress {
    fn from(progress: t::LoadProgress) -> Self {
        Self { loaded_bytes: progress.loaded_bytes, total_bytes: progress.total_bytes }
    }
}

impl From<p::LoadProgress> for t::LoadProgress {
    fn from(progress: p::LoadProgress) -> Self {
        Self { loaded_bytes: progress.loaded_bytes, total_bytes: progress.total_bytes }
    }
}

impl From<t::WorkerLimits> for p::WorkerLimits {
    fn from(limits: t::WorkerLimits) -> Self {
        Self {
            epoch: limits.epoch.0,
            num_slots: limits.num_slots,
            num_blocks: limits.num_blocks,
            max_step_tokens: limits.max_step_tokens,
            max_sequence_tokens: limits.max_sequence_tokens,
        }
    }
}

impl From<p::WorkerLimits> for t::WorkerLimits {
    fn from(limits: p::WorkerLimits) -> Self {
        Self {
            epoch: t::Epoch(limits.epoch),
            num_slots: limits.num_slots,
            num_blocks: limits.num_blocks,
            max_step_tokens: limits.max_step_tokens,
            max_sequence_tokens: limits.max_sequence_tokens,
        }
    }
}

impl From<&t::WorkerDescription> for p::WorkerDescription {
    fn from(description: &t::WorkerDescription) -> Self {
        Self {
            card: Some((&description.card).into()),
            fingerprint: Some((&description.fingerprint).into()),
            limits: Some(description.limits.into()),
            memory_bytes: description.memory_bytes,
        }
    }
}

impl TryFrom<p::WorkerDescription> for t::WorkerDescription {
    type Error = ConvertError;

    fn try_from(description: p::WorkerDescription) -> Result<Self, ConvertError> {
        Ok(Self {
            card: required(description.card, "card")?.try_into()?,
            fingerprint: required(description.fingerprint, "fingerprint")?.into(),
            limits: required(description.limits, "limits")?.into(),
            memory_bytes: description.memory_bytes,
        })
    }
}
