//! Between the public protobuf messages and Rust values.

use tonic::{Code, Status};
use tonic_types::{ErrorDetails, StatusExt};

use super::api::{
    Chat, ChatMessage, GenerateOptions, InferenceCode, InferenceError, InferenceEvent,
    InferencePrompt, InferenceRequest, InferenceToken, ServedModel, StopCause, TokenizeText,
    Tokenized,
};
use crate::public_proto as p;

/// The domain of error reasons.
const DOMAIN: &str = "oarlock";

/// An error as clients of gRPC expect it, with details for programs.
pub(super) fn status(error: InferenceError) -> Status {
    let code = match error.code {
        InferenceCode::InvalidArgument => Code::InvalidArgument,
        InferenceCode::NotFound => Code::NotFound,
        InferenceCode::Unauthenticated => Code::Unauthenticated,
        InferenceCode::PermissionDenied => Code::PermissionDenied,
        InferenceCode::ResourceExhausted => Code::ResourceExhausted,
        InferenceCode::DeadlineExceeded => Code::DeadlineExceeded,
        InferenceCode::Unavailable => Code::Unavailable,
        InferenceCode::Internal => Code::Internal,
    };
    let mut details = ErrorDetails::with_error_info(error.reason, DOMAIN, []);
    if let Some(field) = error.field {
        details.add_bad_request_violation(field, error.message.clone());
    }
    if let Some(seconds) = error.retry_after_s {
        details.set_retry_info(Some(std::time::Duration::from_secs(seconds.into())));
    }
    Status::with_error_details(code, error.message, details)
}

fn missing_prompt() -> InferenceError {
    InferenceError {
        code: InferenceCode::InvalidArgument,
        message: "Missing required parameter: 'prompt': one of text, token_ids or conversation"
            .to_owned(),
        reason: "missing_required_parameter".to_owned(),
        field: Some("prompt".to_owned()),
        retry_after_s: None,
    }
}

impl TryFrom<p::GenerateRequest> for InferenceRequest {
    type Error = InferenceError;

    fn try_from(request: p::GenerateRequest) -> Result<Self, InferenceError> {
        let prompt = match request.prompt.ok_or_else(missing_prompt)? {
            p::generate_request::Prompt::Text(text) => InferencePrompt::Text(text),
            p::generate_request::Prompt::TokenIds(tokens) => InferencePrompt::Tokens(tokens.ids),
            p::generate_request::Prompt::Conversation(chat) => InferencePrompt::Chat(chat.into()),
        };
        let sampling = request.sampling.unwrap_or_default();
        let stopping = request.stopping.unwrap_or_default();
        let output = request.output.unwrap_or_default();
        let mut logit_bias: Vec<(u32, f64)> = sampling.logit_bias.into_iter().collect();
        logit_bias.sort_unstable_by_key(|entry| entry.0);
        let options = GenerateOptions {
            temperature: sampling.temperature,
            top_k: sampling.top_k,
            top_p: sampling.top_p,
            min_p: sampling.min_p,
            seed: sampling.seed,
            n: sampling.n,
            repetition_penalty: sampling.repetition_penalty,
            presence_penalty: sampling.presence_penalty,
            frequency_penalty: sampling.frequency_penalty,
            logit_bias,
            allowed_token_ids: sampling.allowed_token_ids,
            bad_words: sampling.bad_words,
            max_tokens: stopping.max_tokens,
            min_tokens: stopping.min_tokens,
            stop: stopping.stop,
            stop_token_ids: stopping.stop_token_ids,
            ignore_eos: stopping.ignore_eos,
            include_stop_str_in_output: stopping.include_stop_str_in_output,
            logprobs: output.logprobs,
            prompt_logprobs: output.prompt_logprobs,
            token_ids: output.token_ids,
            skip_special_tokens: output.skip_special_tokens,
            truncate_prompt_tokens: request.truncate_prompt_tokens,
            priority: request.priority,
            add_special_tokens: request.add_special_tokens,
        };
        Ok(Self { model: request.model, prompt, options })
    }
}

impl From<p::Conversation> for Chat {
    fn from(chat: p::Conversation) -> Self {
        let message = |message: p::Message| ChatMessage {
            role: message.role,
            content: message.content,
            name: message.name,
            tool_call_id: message.tool_call_id,
            tool_calls_json: message.tool_calls_json,
        };
        Self {
            messages: chat.messages.into_iter().map(message).collect(),
            continue_final_message: chat.continue_final_message,
            template_kwargs_json: chat.chat_template_kwargs_json,
            tools_json: chat.tools_json,
        }
    }
}

impl TryFrom<p::TokenizeRequest> for TokenizeText {
    type Error = InferenceError;

    fn try_from(request: p::TokenizeRequest) -> Result<Self, InferenceError> {
        let prompt = match request.prompt.ok_or_else(missing_prompt)? {
            p::tokenize_request::Prompt::Text(text) => InferencePrompt::Text(text),
            p::tokenize_request::Prompt::Conversation(chat) => InferencePrompt::Chat(chat.into()),
        };
        Ok(Self { model: request.model, prompt, add_special_tokens: request.add_special_tokens })
    }
}

impl From<Tokenized> for p::TokenizeResponse {
    fn from(tokenized: Tokenized) -> Self {
        Self { token_ids: tokenized.token_ids, max_model_len: tokenized.max_model_len }
    }
}

impl From<Vec<ServedModel>> for p::ListModelsResponse {
    fn from(models: Vec<ServedModel>) -> Self {
        let model =
            |model: ServedModel| p::Model { name: model.name, max_model_len: model.max_model_len };
        Self { models: models.into_iter().map(model).collect() }
    }
}

impl From<InferenceToken> for p::Token {
    fn from(token: InferenceToken) -> Self {
        let top = token.top.into_iter();
        Self {
            id: token.id,
            text: token.text,
            logprob: token.logprob,
            top: top.map(|(id, text, logprob)| p::TokenLogprob { id, text, logprob }).collect(),
        }
    }
}

impl From<InferenceEvent> for p::GenerateResponse {
    fn from(event: InferenceEvent) -> Self {
        use p::generate_response::Event;
        let event = match event {
            InferenceEvent::Started { id, model, system_fingerprint, seed, prompt_token_ids } => {
                Event::Started(p::Started { id, model, system_fingerprint, seed, prompt_token_ids })
            }
            InferenceEvent::Piece { index, text, tokens } => {
                let tokens = tokens.into_iter().map(Into::into).collect();
                Event::Piece(p::Piece { index, text, tokens })
            }
            InferenceEvent::Finished { index, stop, prompt_tokens } => {
                let reason = match &stop {
                    Some(_) => p::FinishReason::Stop,
                    None => p::FinishReason::Length,
                };
                let stop = match stop {
                    None | Some(StopCause::EndOfSequence) => None,
                    Some(StopCause::Token(id)) => Some(p::finished::Stop::StopTokenId(id)),
                    Some(StopCause::Text(text)) => Some(p::finished::Stop::StopString(text)),
                };
                let prompt_tokens = prompt_tokens.into_iter().map(Into::into).collect();
                Event::Finished(p::Finished { index, reason: reason.into(), stop, prompt_tokens })
            }
            InferenceEvent::Usage { prompt_tokens, completion_tokens, cached_tokens } => {
                Event::Usage(p::Usage { prompt_tokens, completion_tokens, cached_tokens })
            }
        };
        Self { event: Some(event) }
    }
}
