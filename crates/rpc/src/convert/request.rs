//! Sampling parameters, requests and the scores of tokens.

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
        }
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
            t::SlotError::Panicked(message) => p::slot_error::Kind::Panicked(message.clone()),
        };
        Self { kind: Some(kind) }
    }
}

impl TryFrom<p::SlotError> for t::SlotError {
    type Error = ConvertError;

    fn try_from(error: p::SlotError) -> Result<Self, ConvertError> {
        Ok(match required(error.kind, "kind")? {
            p::slot_error::Kind::InvalidLogits(p::Empty {}) => Self::InvalidLogits,
            p::slot_error::Kind::Panicked(message) => Self::Panicked(message),
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
