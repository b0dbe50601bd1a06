//! What all sequences of one request share, resolved for the model that serves it.

use std::sync::Arc;

use oarlock_text::Tokenizer;
use oarlock_types::{CacheSalt, Priority, SamplingParams, TenantId, Tick, TokenId};

use crate::app::App;
use crate::caller::Caller;
use crate::error::ApiError;
use crate::generate::StopReason;
use crate::models::Served;
use crate::rules::check_ids;
use crate::sampling::Options;

/// Shared by the sequences of one request.
pub(crate) struct Settings {
    pub(crate) sampling: SamplingParams,
    pub(crate) stop: Vec<String>,
    pub(crate) include_stop: bool,
    /// Generated tokens before which no stop string ends the answer.
    pub(crate) min_tokens: u32,
    /// The client's own stop tokens, ascending.
    stop_token_ids: Vec<TokenId>,
    /// All tokens that end the answer, ascending.
    pub(crate) ends: Vec<TokenId>,
    pub(crate) skip_special_tokens: bool,
    /// Whether records of single tokens are wanted (logprobs, token ids, a ranking of answers).
    pub(crate) keep_tokens: bool,
    pub(crate) tokenizer: Option<Arc<Tokenizer>>,
    pub(crate) priority: Priority,
    pub(crate) tenant: TenantId,
    pub(crate) salt: CacheSalt,
    /// How long the request may take.
    pub(crate) deadline: Option<Tick>,
}

impl Settings {
    /// Checks what needs the model, and tokenizes words off the async threads.
    pub(crate) async fn new(
        app: &App,
        served: &Served,
        options: &mut Options,
        caller: &Caller,
    ) -> Result<Self, ApiError> {
        let text = &served.text;
        let tokenizer = text.tokenizer().ok().cloned();
        if tokenizer.is_none() && !options.stop.is_empty() {
            return Err(ApiError::invalid("stop", "this model gives token ids only"));
        }
        let stop_token_ids = std::mem::take(&mut options.stop_token_ids);
        check_ids("stop_token_ids", stop_token_ids.iter().copied(), text.vocab_size)?;
        let mut ends = stop_token_ids.clone();
        if !options.ignore_eos {
            ends.extend_from_slice(&text.eos_token_ids);
        }
        ends.sort_unstable();
        ends.dedup();
        let num_bytes = options.rules.num_bytes();
        let rules = {
            let model = Arc::clone(text);
            let (rules, ends) = (options.rules.clone(), ends.clone());
            let resolve = move || {
                let tokenizer = model.tokenizer().ok().map(AsRef::as_ref);
                rules.resolve(&model.sampling_defaults, model.vocab_size, tokenizer, &ends)
            };
            app.compute(num_bytes, resolve).await??
        };
        let deadline = app.config.request_timeout;
        let deadline =
            deadline.map(|limit| Tick(u64::try_from(limit.as_micros()).unwrap_or(u64::MAX)));
        Ok(Self {
            keep_tokens: options.sampling.top_logprobs.is_some() || options.return_token_ids,
            sampling: options.wishes.resolve(
                &text.sampling_defaults,
                SamplingParams { rules, ..options.sampling.clone() },
            ),
            stop: std::mem::take(&mut options.stop),
            include_stop: options.include_stop,
            min_tokens: options.rules.min_tokens,
            stop_token_ids,
            ends,
            skip_special_tokens: options.skip_special_tokens,
            tokenizer,
            priority: caller.priority(options.priority),
            tenant: caller.tenant(),
            salt: caller.salt(),
            deadline,
        })
    }

    /// Whether this token ends the answer.
    pub(crate) fn ends_with(&self, token: TokenId) -> bool {
        self.ends.binary_search(&token).is_ok()
    }

    /// What the client hears of an answer that this token ended.
    pub(crate) fn stop_reason(&self, token: Option<TokenId>) -> StopReason {
        match token {
            Some(token) if self.stop_token_ids.binary_search(&token).is_ok() => {
                StopReason::Token(token.0)
            }
            _ => StopReason::EndOfSequence,
        }
    }
}
