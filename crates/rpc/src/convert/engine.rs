//! Engine descriptions, events, status and rejections.

use oarlock_types::{self as t, Rejected};
use prost::Message as _;
use tonic::{Code, Status};

use super::{ConvertError, required};
use crate::proto as p;

impl From<&t::EngineDescription> for p::EngineDescription {
    fn from(description: &t::EngineDescription) -> Self {
        let limits = description.limits;
        Self {
            served_name: description.served_name.clone(),
            card: Some((&description.card).into()),
            fingerprint: Some((&description.fingerprint).into()),
            limits: Some(p::EngineLimits {
                max_sequence_tokens: limits.max_sequence_tokens,
                max_seqs: limits.max_seqs,
                max_queued: limits.max_queued,
                max_top_logprobs: limits.max_top_logprobs,
                max_queued_tokens: limits.max_queued_tokens,
            }),
        }
    }
}

impl TryFrom<p::EngineDescription> for t::EngineDescription {
    type Error = ConvertError;

    fn try_from(description: p::EngineDescription) -> Result<Self, ConvertError> {
        let limits = required(description.limits, "limits")?;
        Ok(Self {
            served_name: description.served_name,
            card: required(description.card, "card")?.try_into()?,
            fingerprint: required(description.fingerprint, "fingerprint")?.into(),
            limits: t::EngineLimits {
                max_sequence_tokens: limits.max_sequence_tokens,
                max_seqs: limits.max_seqs,
                max_queued: limits.max_queued,
                max_top_logprobs: limits.max_top_logprobs,
                max_queued_tokens: limits.max_queued_tokens,
            },
        })
    }
}

impl From<&t::EventKind> for p::GenerateEvent {
    fn from(event: &t::EventKind) -> Self {
        use p::generate_event::Kind;
        let kind = match event {
            t::EventKind::Started { cached_tokens } => {
                Kind::Started(p::Started { cached_tokens: *cached_tokens })
            }
            t::EventKind::PromptScores { first, scores } => Kind::PromptScores(p::PromptScores {
                first: *first,
                scores: scores.iter().map(Into::into).collect(),
            }),
            t::EventKind::Token(token) => Kind::Token(token.into()),
            t::EventKind::Finished { reason, usage } => Kind::Finished(finished(reason, *usage)),
        };
        Self { kind: Some(kind) }
    }
}

fn finished(reason: &t::FinishReason, usage: t::Usage) -> p::Finished {
    use p::finished::Reason;
    let reason = match reason {
        t::FinishReason::Stop => Reason::Stop(p::Empty {}),
        t::FinishReason::Length => Reason::Length(p::Empty {}),
        t::FinishReason::Cancelled => Reason::Cancelled(p::Empty {}),
        t::FinishReason::Deadline => Reason::Deadline(p::Empty {}),
        t::FinishReason::Failed(error) => Reason::Failed(error.into()),
        t::FinishReason::EngineLost => Reason::EngineLost(p::Empty {}),
    };
    p::Finished {
        reason: Some(reason),
        prompt_tokens: usage.prompt_tokens,
        cached_tokens: usage.cached_tokens,
        completion_tokens: usage.completion_tokens,
        preemptions: usage.preemptions,
    }
}

impl TryFrom<p::GenerateEvent> for t::EventKind {
    type Error = ConvertError;

    fn try_from(event: p::GenerateEvent) -> Result<Self, ConvertError> {
        use p::generate_event::Kind;
        Ok(match required(event.kind, "kind")? {
            Kind::Started(started) => Self::Started { cached_tokens: started.cached_tokens },
            Kind::PromptScores(scores) => Self::PromptScores {
                first: scores.first,
                scores: scores.scores.into_iter().map(Into::into).collect(),
            },
            Kind::Token(token) => Self::Token(token.into()),
            Kind::Finished(finished) => finished_event(finished)?,
        })
    }
}

fn finished_event(finished: p::Finished) -> Result<t::EventKind, ConvertError> {
    use p::finished::Reason;
    let reason = match required(finished.reason, "reason")? {
        Reason::Stop(p::Empty {}) => t::FinishReason::Stop,
        Reason::Length(p::Empty {}) => t::FinishReason::Length,
        Reason::Cancelled(p::Empty {}) => t::FinishReason::Cancelled,
        Reason::Deadline(p::Empty {}) => t::FinishReason::Deadline,
        Reason::Failed(error) => t::FinishReason::Failed(error.try_into()?),
        Reason::EngineLost(p::Empty {}) => t::FinishReason::EngineLost,
    };
    let usage = t::Usage {
        prompt_tokens: finished.prompt_tokens,
        cached_tokens: finished.cached_tokens,
        completion_tokens: finished.completion_tokens,
        preemptions: finished.preemptions,
    };
    Ok(t::EventKind::Finished { reason, usage })
}

impl From<&t::EngineStatus> for p::EngineStatus {
    fn from(status: &t::EngineStatus) -> Self {
        use p::engine_status::State;
        let state = match &status.state {
            t::EngineState::Starting => State::Starting(p::Empty {}),
            t::EngineState::Ready => State::Ready(p::Empty {}),
            t::EngineState::Restarting { reason } => State::Restarting(reason.clone()),
            t::EngineState::Draining => State::Draining(p::Empty {}),
            t::EngineState::Failed { reason } => State::Failed(reason.clone()),
        };
        Self {
            state: Some(state),
            loading: Some(status.loading.into()),
            worker_pids: status.worker_pids.clone(),
            stats: Some(status.stats.into()),
            step_time_us: Some(status.step_time_us.into()),
            step_tokens: Some(status.step_tokens.into()),
        }
    }
}

impl TryFrom<p::EngineStatus> for t::EngineStatus {
    type Error = ConvertError;

    fn try_from(status: p::EngineStatus) -> Result<Self, ConvertError> {
        use p::engine_status::State;
        let state = match required(status.state, "state")? {
            State::Starting(p::Empty {}) => t::EngineState::Starting,
            State::Ready(p::Empty {}) => t::EngineState::Ready,
            State::Restarting(reason) => t::EngineState::Restarting { reason },
            State::Draining(p::Empty {}) => t::EngineState::Draining,
            State::Failed(reason) => t::EngineState::Failed { reason },
        };
        Ok(Self {
            state,
            loading: required(status.loading, "loading")?.into(),
            worker_pids: status.worker_pids,
            stats: required(status.stats, "stats")?.into(),
            step_time_us: required(status.step_time_us, "step_time_us")?.try_into()?,
            step_tokens: required(status.step_tokens, "step_tokens")?.try_into()?,
        })
    }
}

/// Both directions of a message whose fields have the same names on both sides.
macro_rules! same_fields {
    ($ours:ty, $theirs:ty, $($field:ident),+) => {
        impl From<$ours> for $theirs {
            fn from(value: $ours) -> Self {
                Self { $($field: value.$field),+ }
            }
        }
        impl From<$theirs> for $ours {
            fn from(value: $theirs) -> Self {
                Self { $($field: value.$field),+ }
            }
        }
    };
}

same_fields!(
    t::EngineStats,
    p::EngineStats,
    num_running,
    num_waiting,
    blocks_total,
    blocks_in_use,
    blocks_cached,
    steps,
    prompt_tokens,
    generation_tokens,
    prefix_cache_queries,
    prefix_cache_hits,
    preemptions,
    worker_restarts,
    finished_stop,
    finished_length,
    finished_cancelled,
    finished_failed,
    rejected,
    waiting_tokens,
    rejected_queue_full
);

impl From<t::Histogram> for p::Histogram {
    fn from(histogram: t::Histogram) -> Self {
        Self { counts: histogram.counts.to_vec(), sum: histogram.sum }
    }
}

impl TryFrom<p::Histogram> for t::Histogram {
    type Error = ConvertError;

    fn try_from(histogram: p::Histogram) -> Result<Self, ConvertError> {
        let value = histogram.counts.len() as u64;
        let counts = histogram.counts.try_into();
        let counts = counts.map_err(|_| ConvertError::OutOfRange { field: "counts", value })?;
        Ok(Self { counts, sum: histogram.sum })
    }
}

/// A refused request as a gRPC status: the code for people and proxies, the details for us.
pub(crate) fn rejection_to_status(rejected: Rejected) -> Status {
    use p::rejection::Kind;
    let (code, kind) = match rejected {
        Rejected::QueueFull { limit, retry_after_ms } => {
            let full = p::QueueFull { limit: limit.into(), retry_after_ms };
            (Code::ResourceExhausted, Kind::QueueFull(full))
        }
        Rejected::QueueTokensFull { limit, retry_after_ms } => {
            let full = p::QueueFull { limit, retry_after_ms };
            (Code::ResourceExhausted, Kind::QueueTokensFull(full))
        }
        Rejected::TooLong { tokens, limit } => {
            (Code::InvalidArgument, Kind::TooLong(p::TooLong { tokens, limit }))
        }
        Rejected::EmptyPrompt => (Code::InvalidArgument, Kind::EmptyPrompt(p::Empty {})),
        Rejected::DuplicateId => (Code::AlreadyExists, Kind::DuplicateId(p::Empty {})),
        Rejected::UnknownToken { token } => (Code::InvalidArgument, Kind::UnknownToken(token.0)),
        Rejected::Draining => (Code::Unavailable, Kind::Draining(p::Empty {})),
    };
    let details = p::Rejection { kind: Some(kind) }.encode_to_vec();
    Status::with_details(code, format!("{rejected:?}"), details.into())
}

/// The refusal in a status, if it carries one.
pub(crate) fn rejection_from_status(status: &Status) -> Option<Rejected> {
    use p::rejection::Kind;
    if status.details().is_empty() {
        return None;
    }
    let rejection = p::Rejection::decode(status.details()).ok()?;
    Some(match rejection.kind? {
        Kind::QueueFull(p::QueueFull { limit, retry_after_ms }) => {
            Rejected::QueueFull { limit: u32::try_from(limit).ok()?, retry_after_ms }
        }
        Kind::QueueTokensFull(p::QueueFull { limit, retry_after_ms }) => {
            Rejected::QueueTokensFull { limit, retry_after_ms }
        }
        Kind::TooLong(p::TooLong { tokens, limit }) => Rejected::TooLong { tokens, limit },
        Kind::EmptyPrompt(p::Empty {}) => Rejected::EmptyPrompt,
        Kind::DuplicateId(p::Empty {}) => Rejected::DuplicateId,
        Kind::UnknownToken(token) => Rejected::UnknownToken { token: t::TokenId(token) },
        Kind::Draining(p::Empty {}) => Rejected::Draining,
    })
}
