//! `POST /v1/completions`.

use std::sync::Arc;
use std::time::Instant;

use axum::extract::State;
use axum::response::Response;
use oarlock_types::TokenId;

use crate::app::App;
use crate::body::JsonObject;
use crate::caller::Caller;
use crate::choices::{Admitted, Choices, Fanout, Job};
use crate::completion_response::CompletionWire;
use crate::error::ApiError;
use crate::fields::Fields;
use crate::models::{Served, check_logprobs};
use crate::prompts::{Echo, Encoding, Lengths, Prompt, encode_prompt, fit_max_tokens, truncate};
use crate::sampling::{Options, take_max_tokens};
use crate::settings::Settings;
use crate::stream::respond;

/// Tokens generated where the request does not say how many, as OpenAI's API has it.
const DEFAULT_MAX_TOKENS: u32 = 16;

/// Bytes of work that decoding one token counts for.
const BYTES_PER_TOKEN: usize = 8;

/// A checked request.
struct CompletionRequest {
    model: String,
    prompts: Vec<Prompt>,
    options: Options,
    /// Answers of which the `n` best are given.
    best_of: u32,
    max_tokens: Option<u32>,
    echo: bool,
    add_special_tokens: bool,
}

/// A request that runs.
pub(crate) struct RunningCompletion {
    pub(crate) served: Arc<Served>,
    pub(crate) options: Options,
    pub(crate) choices: Choices,
    /// By prompt, where they are part of the answer.
    pub(crate) echoes: Vec<Echo>,
}

impl CompletionRequest {
    fn take(mut fields: Fields, app: &App) -> Result<Self, ApiError> {
        let limits = &app.config.request;
        let model = fields.string("model")?.ok_or_else(|| ApiError::missing("model"))?;
        let prompts = Prompt::take_all(&mut fields, limits)?;
        let mut options = Options::take(&mut fields, limits)?;
        let best_of = take_best_of(&mut fields, &options, limits.max_choices)?;
        limits.check_sequences(prompts.len(), best_of)?;
        let logprobs = fields.integer("logprobs", 0..=i64::from(limits.max_top_logprobs))?;
        options.sampling.top_logprobs = logprobs.map(|logprobs| logprobs as u8);
        let echo = fields.boolean("echo")?.unwrap_or(false);
        // Without an answer and without the prompt there would be nothing to say.
        let least = i64::from(!echo && options.prompt_logprobs.is_none());
        let max_tokens = take_max_tokens(&mut fields, least, options.rules.min_tokens)?;
        let add_special_tokens = fields.boolean("add_special_tokens")?.unwrap_or(true);
        fields.finish()?;
        Ok(Self { model, prompts, options, best_of, max_tokens, echo, add_special_tokens })
    }
}

fn take_best_of(fields: &mut Fields, options: &Options, most: u32) -> Result<u32, ApiError> {
    const NAME: &str = "best_of";
    let Some(best_of) = fields.integer(NAME, 1..=i64::from(most))? else { return Ok(options.n) };
    let best_of = best_of as u32;
    if best_of < options.n {
        return Err(ApiError::invalid(
            NAME,
            format!("it is less than 'n', which is {}", options.n),
        ));
    }
    if best_of > options.n && options.stream {
        return Err(ApiError::invalid(NAME, "the best answers cannot be known in a stream"));
    }
    Ok(best_of)
}

/// Answers one completion request.
pub(crate) async fn create(
    State(app): State<App>,
    caller: Caller,
    body: JsonObject,
) -> Result<Response, ApiError> {
    let RunningCompletion { served, options, choices, echoes } =
        start(&app, caller, body.0).await?;
    let wire = CompletionWire::new(&served, &options, echoes)?;
    respond(&app, choices, wire, &options).await
}

/// Checks a completion request and hands it to an engine.
pub(crate) async fn start(
    app: &App,
    caller: Caller,
    fields: Fields,
) -> Result<RunningCompletion, ApiError> {
    let arrived = Instant::now();
    let in_flight = app.admit()?;
    let job = Arc::clone(app);
    let request = app.compute(fields.num_bytes(), move || CompletionRequest::take(fields, &job));
    let CompletionRequest {
        model,
        prompts,
        mut options,
        best_of,
        max_tokens,
        echo,
        add_special_tokens,
    } = request.await??;
    let served = app.models.find(&model).await?;
    check_logprobs(&served, &options, "logprobs")?;
    let mut jobs = Vec::with_capacity(prompts.len());
    let mut echoes = Vec::new();
    let encoding = Encoding {
        add_bos: add_special_tokens,
        truncate: options.truncate_prompt,
        field: "prompt",
    };
    let min_tokens = options.rules.min_tokens;
    let lengths = Lengths { max_tokens, min_tokens, default: DEFAULT_MAX_TOKENS };
    for prompt in prompts {
        let mut prompt = encode_prompt(app, &served, prompt, encoding).await?;
        let limit = served.limits.max_sequence_tokens;
        truncate(&mut prompt, options.truncate_prompt, limit, max_tokens);
        let tokens: Arc<[TokenId]> = prompt.tokens.into();
        let length = tokens.len();
        let max_tokens = fit_max_tokens(&served, length, lengths, "prompt")?;
        let mut num_echo_chars = 0;
        if echo {
            let tokenizer = Arc::clone(served.text.tokenizer()?);
            let (tokens, text) = (Arc::clone(&tokens), prompt.text);
            let num_bytes = tokens.len() * BYTES_PER_TOKEN;
            let decode = move || Echo::new(&tokenizer, &tokens, text);
            let echo = app.compute(num_bytes, decode).await?;
            num_echo_chars = echo.text.chars().count();
            echoes.push(echo);
        }
        jobs.push(Job { prompt: tokens, max_tokens, num_echo_chars });
    }
    let echo_scores = if echo { options.sampling.top_logprobs } else { None };
    let fanout = Fanout {
        choices: best_of,
        n: options.n,
        prompt_logprobs: options.prompt_logprobs.max(echo_scores),
        first_scores_only: !options.stream,
    };
    let mut settings = Settings::new(app, &served, &mut options, &caller).await?;
    if best_of > options.n {
        // The ranking needs every token's logprob, also where the client does not.
        settings.sampling.top_logprobs.get_or_insert(0);
        settings.keep_tokens = true;
    }
    let settings = Arc::new(settings);
    let choices = Choices::start(
        app,
        &served,
        settings,
        jobs,
        &fanout,
        Admitted { caller, in_flight, arrived },
    )
    .await?;
    Ok(RunningCompletion { served, options, choices, echoes })
}
