//! Sampling parameters, requests and the scores of tokens.

use std::sync::Arc;

use oarlock_types as t;

use super::{ConvertError, all, byte, raw_tokens, required, token_ids};
use crate::proto as p;

impl From<&t::SamplingParams> for p::SamplingParams {
    fn from(params: &t::SamplingParams) -> Self {
        Self {
            temperature: params.temperature,
            top_k: params.top_k,
            top_p: params.top_p,
            min_p: params.min_p,
            seed: params.seed,
            choice: params.choice,
            top_logprobs: params.top_logprobs.map(u32::from),
            rules: params.rules.as_deref().map(Into::into),
        }
    }
}

impl From<&t::LogitRules> for p::LogitRules {
    fn from(rules: &t::LogitRules) -> Self {
        let words = rules.bad_words.iter();
        Self {
            allowed: raw_tokens(&rules.allowed),
            bad_words: words.map(|w| p::TokenSequence { tokens: raw_tokens(w) }).collect(),
            min_tokens: rules.min_tokens,
            min_tokens_banned: raw_tokens(&rules.min_tokens_banned),
            bias_tokens: rules.bias.iter().map(|(token, _)| token.0).collect(),
            bias_values: rules.bias.iter().map(|(_, value)| *value).collect(),
            repetition_penalty: rules.repetition_penalty,
            frequency_penalty: rules.frequency_penalty,
            presence_penalty: rules.presence_penalty,
        }
    }
}

impl TryFrom<p::LogitRules> for t::LogitRules {
    type Error = ConvertError;

    fn try_from(rules: p::LogitRules) -> Result<Self, ConvertError> {
        let wrong = |field, value: usize| ConvertError::OutOfRange { field, value: value as u64 };
        let sorted = |field, ids: &[u32]| {
            if ids.is_sorted() { Ok(()) } else { Err(wrong(field, ids.len())) }
        };
        sorted("allowed", &rules.allowed)?;
        sorted("min_tokens_banned", &rules.min_tokens_banned)?;
        sorted("bias_tokens", &rules.bias_tokens)?;
        if rules.bias_tokens.len() != rules.bias_values.len() {
            return Err(wrong("bias_values", rules.bias_values.len()));
        }
        if rules.bad_words.iter().any(|word| word.tokens.is_empty()) {
            return Err(wrong("bad_words", 0));
        }
        let factors = [
            ("repetition_penalty", rules.repetition_penalty),
            ("frequency_penalty", rules.frequency_penalty.abs()),
            ("presence_penalty", rules.presence_penalty.abs()),
        ];
        if let Some((field, _)) =
            factors.iter().find(|(_, value)| !(value.is_finite() && *value >= 0.0))
        {
            return Err(ConvertError::NotAFactor(field));
        }
        if rules.repetition_penalty == 0.0 || rules.bias_values.iter().any(|v| !v.is_finite()) {
            return Err(wrong("repetition_penalty or bias_values", 0));
        }
        Ok(Self {
            allowed: token_ids(rules.allowed),
            bad_words: rules.bad_words.into_iter().map(|word| token_ids(word.tokens)).collect(),
            min_tokens: rules.min_tokens,
            min_tokens_banned: token_ids(rules.min_tokens_banned),
            bias: token_ids(rules.bias_tokens).into_iter().zip(rules.bias_values).collect(),
            repetition_penalty: rules.repetition_penalty,
            frequency_penalty: rules.frequency_penalty,
            presence_penalty: rules.presence_penalty,
        })
    }
}

impl TryFrom<p::SamplingParams> for t::SamplingParams {
    type Error = ConvertError;

    fn try_from(params: p::SamplingParams) -> Result<Self, ConvertError> {
        let factors =
            [("temperature", params.temperature), ("top_p", params.top_p), ("min_p", params.min_p)];
        if let Some((field, _)) =
            factors.iter().find(|(_, value)| !(value.is_finite() && *value >= 0.0))
        {
            return Err(ConvertError::NotAFactor(field));
        }
        Ok(Self {
            temperature: params.temperature,
            top_k: params.top_k,
            top_p: params.top_p,
            min_p: params.min_p,
            seed: params.seed,
            choice: params.choice,
            top_logprobs: params.top_logprobs.map(|n| byte(n, "top_logprobs")).transpose()?,
            rules: params.rules.map(|rules| rules.try_into().map(Arc::new)).transpose()?,
        })
    }
}

impl From<&t::Request> for p::GenerateRequest {
    fn from(request: &t::Request) -> Self {
        Self {
            tokens: raw_tokens(&request.tokens),
            num_prompt: request.num_prompt,
            sampling: Some((&request.sampling).into()),
            max_tokens: request.stop.max_tokens,
            stop_token_ids: raw_tokens(&request.stop.stop_token_ids),
            prompt_logprobs: request.prompt_logprobs.map(u32::from),
            priority: request.priority.0.into(),
            tenant: request.tenant.0,
            salt: request.salt.0,
            deadline_us: request.deadline.map(|deadline| deadline.0),
            group: request.group.map(|group| group.0),
        }
    }
}

impl TryFrom<p::GenerateRequest> for t::Request {
    type Error = ConvertError;

    fn try_from(request: p::GenerateRequest) -> Result<Self, ConvertError> {
        if request.num_prompt as usize > request.tokens.len() {
            return Err(ConvertError::OutOfRange {
                field: "num_prompt",
                value: request.num_prompt.into(),
            });
        }
        if !request.stop_token_ids.is_sorted() {
            return Err(ConvertError::OutOfRange { field: "stop_token_ids", value: 0 });
        }
        Ok(Self {
            id: t::RequestId::default(),
            tokens: token_ids(request.tokens),
            num_prompt: request.num_prompt,
            sampling: required(request.sampling, "sampling")?.try_into()?,
            stop: t::StopCriteria {
                max_tokens: request.max_tokens,
                stop_token_ids: token_ids(request.stop_token_ids),
            },
            prompt_logprobs: request
                .prompt_logprobs
                .map(|n| byte(n, "prompt_logprobs"))
                .transpose()?,
            priority: t::Priority(byte(request.priority, "priority")?),
            tenant: t::TenantId(request.tenant),
            salt: t::CacheSalt(request.salt),
            deadline: request.deadline_us.map(t::Tick),
            group: request.group.map(t::GroupId),
        })
    }
}

impl From<&t::TokenScore> for p::TokenScore {
    fn from(score: &t::TokenScore) -> Self {
        let top = score
            .top
            .iter()
            .map(|r| p::RankedToken { token: r.token.0, logprob: r.logprob })
            .collect();
        Self { logprob: score.logprob, rank: score.rank, top }
    }
}

impl From<p::TokenScore> for t::TokenScore {
    fn from(score: p::TokenScore) -> Self {
        let top = score.top.into_iter();
        Self {
            logprob: score.logprob,
            rank: score.rank,
            top: top
                .map(|r| t::RankedToken { token: t::TokenId(r.token), logprob: r.logprob })
                .collect(),
        }
    }
}

impl From<&t::SampledToken> for p::SampledToken {
    fn from(token: &t::SampledToken) -> Self {
        Self { token: token.token.0, score: token.score.as_ref().map(Into::into) }
    }
}

impl From<p::SampledToken> for t::SampledToken {
    fn from(token: p::SampledToken) -> Self {
        Self { token: t::TokenId(token.token), score: token.score.map(Into::into) }
    }
}

impl From<&t::SlotError> for p::SlotError {
    fn from(error: &t::SlotError) -> Self {
        let kind = match error {
            t::SlotError::InvalidLogits => p::slot_error::Kind::InvalidLogits(p::Empty {}),
            t::SlotError::NothingAllowed => p::slot_error::Kind::NothingAllowed(p::Empty {}),
            t::SlotError::Panicked(message) => p::slot_error::Kind::Panicked(message.clone()),
            t::SlotError::KillsWorkers => p::slot_error::Kind::KillsWorkers(p::Empty {}),
        };
        Self { kind: Some(kind) }
    }
}

impl TryFrom<p::SlotError> for t::SlotError {
    type Error = ConvertError;

    fn try_from(error: p::SlotError) -> Result<Self, ConvertError> {
        Ok(match required(error.kind, "kind")? {
            p::slot_error::Kind::InvalidLogits(p::Empty {}) => Self::InvalidLogits,
            p::slot_error::Kind::NothingAllowed(p::Empty {}) => Self::NothingAllowed,
            p::slot_error::Kind::Panicked(message) => Self::Panicked(message),
            p::slot_error::Kind::KillsWorkers(p::Empty {}) => Self::KillsWorkers,
        })
    }
}

impl From<&t::SlotStart> for p::SlotStart {
    fn from(start: &t::SlotStart) -> Self {
        Self {
            slot: start.slot.0,
            tokens: raw_tokens(&start.tokens),
            num_prompt: start.num_prompt,
            sampling: Some((&start.sampling).into()),
            prompt_logprobs: start.prompt_logprobs.map(u32::from),
        }
    }
}

impl TryFrom<p::SlotStart> for t::SlotStart {
    type Error = ConvertError;

    fn try_from(start: p::SlotStart) -> Result<Self, ConvertError> {
        Ok(Self {
            slot: t::SlotId(start.slot),
            tokens: token_ids(start.tokens),
            num_prompt: start.num_prompt,
            sampling: required(start.sampling, "sampling")?.try_into()?,
            prompt_logprobs: start
                .prompt_logprobs
                .map(|n| byte(n, "prompt_logprobs"))
                .transpose()?,
        })
    }
}

impl From<&t::SlotResult> for p::SlotResult {
    fn from(result: &t::SlotResult) -> Self {
        let outcome = match &result.outcome {
            Ok(None) => None,
            Ok(Some(token)) => Some(p::slot_result::Outcome::Token(token.into())),
            Err(error) => Some(p::slot_result::Outcome::Error(error.into())),
        };
        Self {
            slot: result.slot.0,
            outcome,
            prompt_scores: result.prompt_scores.iter().map(Into::into).collect(),
        }
    }
}

impl TryFrom<p::SlotResult> for t::SlotResult {
    type Error = ConvertError;

    fn try_from(result: p::SlotResult) -> Result<Self, ConvertError> {
        let outcome = match result.outcome {
            None => Ok(None),
            Some(p::slot_result::Outcome::Token(token)) => Ok(Some(token.into())),
            Some(p::slot_result::Outcome::Error(error)) => Err(error.try_into()?),
        };
        let prompt_scores = result.prompt_scores.into_iter().map(Into::into).collect();
        Ok(Self { slot: t::SlotId(result.slot), outcome, prompt_scores })
    }
}

impl TryFrom<p::StepResult> for t::StepResult {
    type Error = ConvertError;

    fn try_from(result: p::StepResult) -> Result<Self, ConvertError> {
        Ok(Self {
            step: t::StepId(result.step),
            slots: all(result.slots)?,
            elapsed_us: result.elapsed_us,
        })
    }
}

impl From<&t::StepResult> for p::StepResult {
    fn from(result: &t::StepResult) -> Self {
        Self {
            step: result.step.0,
            slots: result.slots.iter().map(Into::into).collect(),
            elapsed_us: result.elapsed_us,
        }
    }
}
