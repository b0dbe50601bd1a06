//! How tokens are drawn.

use std::sync::Arc;

use crate::TokenId;

/// How a token is drawn from the logits. All of it is a function of these fields, the tokens so far
/// and the absolute position, so that preemption and failover need no other state.
#[derive(Clone, Debug, PartialEq)]
pub struct SamplingParams {
    /// 0 takes the most likely token (the lowest id among equals); otherwise logits are divided by it.
    pub temperature: f32,
    /// Keep the `top_k` most likely tokens; 0 keeps all.
    pub top_k: u32,
    /// Keep the shortest prefix (by weight descending, id ascending) with at least this share of the
    /// weight; 1.0 keeps all.
    pub top_p: f32,
    /// Keep tokens with at least this share of the most likely token's weight; 0.0 keeps all.
    pub min_p: f32,
    /// Key of the counter-based generator.
    pub seed: u64,
    /// Which of `n` choices this is: part of the generator's counter.
    pub choice: u32,
    /// `Some(n)`: report the logprob of each sampled token and of the `n` most likely ones.
    pub top_logprobs: Option<u8>,
    /// Changes to the logits before a token is drawn; `None` where there are none. Logprobs are
    /// always of the logits before them.
    pub rules: Option<Arc<LogitRules>>,
}

impl Default for SamplingParams {
    fn default() -> Self {
        Self {
            temperature: 1.0,
            top_k: 0,
            top_p: 1.0,
            min_p: 0.0,
            seed: 0,
            choice: 0,
            top_logprobs: None,
            rules: None,
        }
    }
}

/// Changes to the logits before a token is drawn, applied in the order of the fields. All of them are
/// functions of the tokens so far, so that preemption and failover need no other state.
#[derive(Clone, Debug, PartialEq)]
pub struct LogitRules {
    /// Only these tokens may be drawn, ascending; empty: all.
    pub allowed: Vec<TokenId>,
    /// Token sequences that the answer must not contain: the last token of each cannot be drawn where
    /// the generated tokens end with those before it. None is empty.
    pub bad_words: Vec<Vec<TokenId>>,
    /// Generated tokens before which none of `min_tokens_banned` can be drawn.
    pub min_tokens: u32,
    /// Tokens that would end the answer, ascending.
    pub min_tokens_banned: Vec<TokenId>,
    /// Added to the logits of these tokens, ascending by token.
    pub bias: Vec<(TokenId, f32)>,
    /// Logits of tokens in the prompt or the answer are divided by it if positive, else multiplied
    /// (Keskar et al. 2019, CTRL); 1.0 changes nothing.
    pub repetition_penalty: f32,
    /// Subtracted from a token's logit once for each time that it was generated.
    pub frequency_penalty: f32,
    /// Subtracted from the logits of tokens that were generated.
    pub presence_penalty: f32,
}

impl Default for LogitRules {
    fn default() -> Self {
        Self {
            allowed: Vec::new(),
            bad_words: Vec::new(),
            min_tokens: 0,
            min_tokens_banned: Vec::new(),
            bias: Vec::new(),
            repetition_penalty: 1.0,
            frequency_penalty: 0.0,
            presence_penalty: 0.0,
        }
    }
}
