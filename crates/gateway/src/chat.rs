//! `POST /v1/chat/completions`.

use std::sync::Arc;
use std::time::Instant;

use axum::extract::State;
use axum::response::Response;
use oarlock_text::ChatPrompt;

use crate::app::App;
use crate::body::JsonObject;
use crate::caller::Caller;
use crate::chat_response::ChatWire;
use crate::choices::{Admitted, Choices, Fanout, Job};
use crate::error::ApiError;
use crate::fields::Fields;
use crate::messages::Conversation;
use crate::models::{ModelText, Served, check_logprobs};
use crate::prompts::{EncodedPrompt, Encoding, Lengths, encode_bounded, fit_max_tokens, truncate};
use crate::sampling::{Options, Truncation, take_max_tokens};
use crate::settings::Settings;
use crate::stream::respond;

/// Put behind an open last message while the template renders it, to find where it ends. The space
/// at its end tells whether the template keeps spaces there. No text of a client contains it, unless
/// on purpose; the last one counts.
const CONTINUATION_MARK: &str = "\u{f8ff}<oarlock continues here>\u{f8ff} ";

/// A checked request.
struct ChatRequest {
    model: String,
    conversation: Conversation,
    options: Options,
    max_tokens: Option<u32>,
}

/// A request that runs.
pub(crate) struct RunningChat {
    pub(crate) served: Arc<Served>,
    pub(crate) options: Options,
    pub(crate) choices: Choices,
}

impl ChatRequest {
    fn take(mut fields: Fields, app: &App) -> Result<Self, ApiError> {
        let limits = &app.config.request;
        let model = fields.string("model")?.ok_or_else(|| ApiError::missing("model"))?;
        let conversation = Conversation::take(&mut fields, limits)?;
        let mut options = Options::take(&mut fields, limits)?;
        limits.check_sequences(1, options.n)?;
        options.sampling.top_logprobs = take_logprobs(&mut fields, limits.max_top_logprobs)?;
        let least = i64::from(options.prompt_logprobs.is_none());
        let max_tokens = take_max_tokens(&mut fields, least, options.rules.min_tokens)?;
        // A template writes its special tokens itself.
        if fields.boolean("add_special_tokens")?.unwrap_or(false) {
            let message = "only false is supported: the chat template writes special tokens";
            return Err(ApiError::unsupported("add_special_tokens", message));
        }
        fields.finish()?;
        Ok(Self { model, conversation, options, max_tokens })
    }
}

fn take_logprobs(fields: &mut Fields, most: u32) -> Result<Option<u8>, ApiError> {
    let logprobs = fields.boolean("logprobs")?.unwrap_or(false);
    let top_logprobs = fields.integer("top_logprobs", 0..=i64::from(most))?.unwrap_or(0);
    if top_logprobs > 0 && !logprobs {
        return Err(ApiError::invalid("top_logprobs", "it goes with \"logprobs\": true only"));
    }
    Ok(logprobs.then_some(top_logprobs as u8))
}

/// Answers one chat request.
pub(crate) async fn create(
    State(app): State<App>,
    caller: Caller,
    body: JsonObject,
) -> Result<Response, ApiError> {
    let RunningChat { served, options, choices } = start(&app, caller, body.0).await?;
    let wire = ChatWire::new(&served, &options)?;
    respond(&app, choices, wire, &options).await
}

/// Checks a chat request and hands it to an engine.
pub(crate) async fn start(
    app: &App,
    caller: Caller,
    fields: Fields,
) -> Result<RunningChat, ApiError> {
    let arrived = Instant::now();
    let in_flight = app.admit()?;
    let job = Arc::clone(app);
    let request = app.compute(fields.num_bytes(), move || ChatRequest::take(fields, &job));
    let ChatRequest { model, conversation, mut options, max_tokens } = request.await??;
    let served = app.models.find(&model).await?;
    check_logprobs(&served, &options, "top_logprobs")?;
    let mut prompt = encode_chat(app, &served, conversation, options.truncate_prompt).await?;
    let limit = served.limits.max_sequence_tokens;
    truncate(&mut prompt, options.truncate_prompt, limit, max_tokens);
    let min_tokens = options.rules.min_tokens;
    let default = served.text.sampling_defaults.max_tokens.unwrap_or(u32::MAX);
    let lengths = Lengths { max_tokens, min_tokens, default };
    let max_tokens = fit_max_tokens(&served, prompt.tokens.len(), lengths, "messages")?;
    let fanout = Fanout {
        choices: options.n,
        n: options.n,
        prompt_logprobs: options.prompt_logprobs,
        first_scores_only: true,
    };
    let settings = Arc::new(Settings::new(app, &served, &mut options, &caller).await?);
    let jobs = vec![Job { prompt: prompt.tokens.into(), max_tokens, num_echo_chars: 0 }];
    let choices = Choices::start(
        app,
        &served,
        settings,
        jobs,
        &fanout,
        Admitted { caller, in_flight, arrived },
    );
    Ok(RunningChat { choices: choices.await?, served, options })
}

/// Renders the conversation and tokenizes the text; special tokens in it count as such.
pub(crate) async fn encode_chat(
    app: &App,
    served: &Served,
    conversation: Conversation,
    truncate: Option<Truncation>,
) -> Result<EncodedPrompt, ApiError> {
    let tokenizer = Arc::clone(served.text.tokenizer()?);
    served.text.template()?;
    let text = Arc::clone(&served.text);
    let limit = served.limits.max_sequence_tokens;
    let bytes = conversation.approximate_bytes();
    let encoding = Encoding { add_bos: false, truncate, field: "messages" };
    app.compute(bytes, move || {
        let rendered = render(&text, conversation)?;
        let tokens = encode_bounded(&tokenizer, &rendered, limit, encoding)?;
        Ok(EncodedPrompt { tokens, text: None, has_bos: false })
    })
    .await?
}

fn render(text: &ModelText, mut conversation: Conversation) -> Result<String, ApiError> {
    if conversation.continue_final_message {
        conversation.append_to_last(CONTINUATION_MARK);
    }
    let mut rendered = text.template()?.render(&ChatPrompt {
        messages: &conversation.messages,
        tools: conversation.tools.as_ref(),
        add_generation_prompt: conversation.add_generation_prompt,
        kwargs: &conversation.template_kwargs,
        bos_token: text.bos_text.as_deref(),
        eos_token: text.eos_text.as_deref(),
    })?;
    if conversation.continue_final_message {
        let end = rendered.rfind(CONTINUATION_MARK.trim_end()).ok_or_else(|| {
            let message = "this model's chat template does not write out the last message";
            ApiError::invalid("continue_final_message", message)
        })?;
        let keeps_spaces = rendered[end..].starts_with(CONTINUATION_MARK);
        rendered.truncate(end);
        if !keeps_spaces {
            rendered.truncate(rendered.trim_end().len());
        }
    }
    Ok(rendered)
}
