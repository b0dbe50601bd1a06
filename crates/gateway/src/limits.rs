//! What one request may ask for.

use crate::error::ApiError;

/// Limits on the fields of a request; beyond them it is a 400 that names the field.
#[derive(Clone, Debug)]
pub struct RequestLimits {
    /// Choices of one prompt (`n`, `best_of`).
    pub max_choices: u32,
    /// Prompts of one completion request.
    pub max_prompts: u32,
    /// Sequences that one request starts: prompts times choices.
    pub max_sequences: u32,
    /// Stop strings.
    pub max_stops: u32,
    /// Length of one stop string, in characters.
    pub max_stop_chars: u32,
    /// Entries of `stop_token_ids`.
    pub max_stop_token_ids: u32,
    /// Entries of `logit_bias`.
    pub max_logit_bias: u32,
    /// Entries of `allowed_token_ids`.
    pub max_allowed_token_ids: u32,
    /// Entries of `bad_words`.
    pub max_bad_words: u32,
    /// Length of one entry of `bad_words`, in characters.
    pub max_bad_word_chars: u32,
    /// Most likely tokens that may be asked for at each place (`top_logprobs`, `logprobs`,
    /// `prompt_logprobs`).
    pub max_top_logprobs: u32,
    /// Logprobs of prompts in one answer: tokens of its prompts, times entries at each place, times
    /// choices that repeat them. They cost nothing to ask for and much to write.
    pub max_prompt_logprob_entries: u32,
    /// Messages of a conversation.
    pub max_messages: u32,
    /// Tools of a conversation.
    pub max_tools: u32,
}

impl Default for RequestLimits {
    fn default() -> Self {
        Self {
            max_choices: 128,
            max_prompts: 128,
            max_sequences: 256,
            max_stops: 16,
            max_stop_chars: 256,
            max_stop_token_ids: 256,
            max_logit_bias: 1024,
            max_allowed_token_ids: 65_536,
            max_bad_words: 128,
            max_bad_word_chars: 256,
            max_top_logprobs: 20,
            max_prompt_logprob_entries: 1_000_000,
            max_messages: 4096,
            max_tools: 256,
        }
    }
}

impl RequestLimits {
    /// Refuses a request that would start too many sequences.
    pub(crate) fn check_sequences(&self, prompts: usize, choices: u32) -> Result<(), ApiError> {
        let sequences = prompts as u64 * u64::from(choices);
        if sequences <= u64::from(self.max_sequences) {
            return Ok(());
        }
        let field = if prompts > 1 { "prompt" } else { "n" };
        let limit = self.max_sequences;
        let message =
            format!("prompts times choices are {sequences} sequences, at most {limit} are allowed");
        Err(ApiError::invalid(field, message))
    }
}
