//! Limits on what one request may ask for, as options of `oarlock serve`.

use clap::Args;
use oarlock_gateway::RequestLimits;

/// Limits on the fields of a request; beyond them the answer is a 400 that names the field.
#[expect(clippy::struct_field_names, reason = "each is a flag, and the flags begin with max")]
#[derive(Debug, Args)]
#[command(next_help_heading = "Limits of a request (beyond them: 400)")]
pub(crate) struct RequestLimitArguments {
    /// Choices of one prompt: `n`, `best_of`.
    #[arg(long, value_name = "N", default_value_t = 128, value_parser = clap::value_parser!(u32).range(1..=65_536))]
    max_choices: u32,
    /// Prompts of one completion request.
    #[arg(long, value_name = "N", default_value_t = 128, value_parser = clap::value_parser!(u32).range(1..=65_536))]
    max_prompts: u32,
    /// Sequences that one request starts: prompts times choices.
    #[arg(long, value_name = "N", default_value_t = 256, value_parser = clap::value_parser!(u32).range(1..=65_536))]
    max_request_sequences: u32,
    /// Stop strings.
    #[arg(long, value_name = "N", default_value_t = 16)]
    max_stop_strings: u32,
    /// Characters of one stop string.
    #[arg(long, value_name = "N", default_value_t = 256)]
    max_stop_chars: u32,
    /// Entries of `stop_token_ids`.
    #[arg(long, value_name = "N", default_value_t = 256)]
    max_stop_token_ids: u32,
    /// Entries of `logit_bias`.
    #[arg(long, value_name = "N", default_value_t = 1024)]
    max_logit_bias: u32,
    /// Entries of `allowed_token_ids`.
    #[arg(long, value_name = "N", default_value_t = 65_536)]
    max_allowed_token_ids: u32,
    /// Entries of `bad_words`.
    #[arg(long, value_name = "N", default_value_t = 128)]
    max_bad_words: u32,
    /// Characters of one entry of `bad_words`.
    #[arg(long, value_name = "N", default_value_t = 256)]
    max_bad_word_chars: u32,
    /// Most likely tokens at each place: `top_logprobs`, `logprobs`, `prompt_logprobs`.
    #[arg(long, value_name = "N", default_value_t = 20, value_parser = clap::value_parser!(u32).range(0..=20))]
    max_top_logprobs: u32,
    /// Logprobs of prompts in one answer: tokens of the prompts, times entries at each place, times
    /// choices (`prompt_logprobs`, `echo` with `logprobs`).
    #[arg(long, value_name = "N", default_value_t = 1_000_000)]
    max_prompt_logprob_entries: u32,
    /// Messages of a conversation.
    #[arg(long, value_name = "N", default_value_t = 4096, value_parser = clap::value_parser!(u32).range(1..))]
    max_messages: u32,
    /// Tools of a conversation.
    #[arg(long, value_name = "N", default_value_t = 256)]
    max_tools: u32,
}

impl RequestLimitArguments {
    /// The limits for the gateway.
    pub(crate) fn limits(&self) -> RequestLimits {
        RequestLimits {
            max_choices: self.max_choices,
            max_prompts: self.max_prompts,
            max_sequences: self.max_request_sequences,
            max_stops: self.max_stop_strings,
            max_stop_chars: self.max_stop_chars,
            max_stop_token_ids: self.max_stop_token_ids,
            max_logit_bias: self.max_logit_bias,
            max_allowed_token_ids: self.max_allowed_token_ids,
            max_bad_words: self.max_bad_words,
            max_bad_word_chars: self.max_bad_word_chars,
            max_top_logprobs: self.max_top_logprobs,
            max_prompt_logprob_entries: self.max_prompt_logprob_entries,
            max_messages: self.max_messages,
            max_tools: self.max_tools,
        }
    }
}

#[cfg(test)]
mod tests {
    use clap::Parser;

    use super::*;

    #[derive(Debug, Parser)]
    struct Line {
        #[command(flatten)]
        limits: RequestLimitArguments,
    }

    #[test]
    fn the_defaults_are_the_gateways() {
        let ours = Line::try_parse_from(["test"]).unwrap().limits.limits();
        assert_eq!(format!("{ours:?}"), format!("{:?}", RequestLimits::default()));
    }
}
