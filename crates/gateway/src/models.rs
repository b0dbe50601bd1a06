//! The models that engines serve: described once per engine, with tokenizer and template built.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use axum::extract::{Path, State};
use axum::response::{IntoResponse, Response};
use oarlock_discovery::{Member, View};
use oarlock_rpc::EngineApi;
use oarlock_text::{ChatTemplate, TextError, Tokenizer};
use oarlock_types::{EngineDescription, EngineLimits, Fingerprint, SamplingDefaults, TokenId};
use serde_json::{Value, json};
use tokio::sync::OnceCell;
use tokio::time::timeout;

use crate::app::App;
use crate::error::ApiError;
use crate::sampling::Options;

/// One engine and what is needed to speak to its model.
pub(crate) struct Served {
    pub(crate) name: String,
    pub(crate) engine: Arc<dyn EngineApi>,
    pub(crate) text: Arc<ModelText>,
    pub(crate) limits: EngineLimits,
    /// Seconds since 1970 at which it was first described.
    pub(crate) created: u64,
}

/// The parts of a model that depend on its weight file only.
pub(crate) struct ModelText {
    fingerprint: Fingerprint,
    /// A short hash of the fingerprint.
    pub(crate) system_fingerprint: String,
    tokenizer: Result<Arc<Tokenizer>, String>,
    template: Result<ChatTemplate, String>,
    pub(crate) vocab_size: u32,
    pub(crate) eos_token_ids: Vec<TokenId>,
    /// The token that begins a plain prompt.
    pub(crate) bos: Option<TokenId>,
    pub(crate) bos_text: Option<String>,
    pub(crate) eos_text: Option<String>,
    /// The model's, if requests are to have them.
    pub(crate) sampling_defaults: SamplingDefaults,
}

impl ModelText {
    pub(crate) fn tokenizer(&self) -> Result<&Arc<Tokenizer>, ApiError> {
        self.tokenizer.as_ref().map_err(|reason| {
            ApiError::malformed(format!("This model takes and gives token ids only: {reason}"))
        })
    }

    pub(crate) fn template(&self) -> Result<&ChatTemplate, ApiError> {
        self.template
            .as_ref()
            .map_err(|reason| ApiError::malformed(format!("This model cannot chat: {reason}")))
    }

    fn new(description: EngineDescription) -> Self {
        let EngineDescription { card, fingerprint, served_name, .. } = description;
        let log = |what: &str, error: TextError| {
            tracing::error!(model = served_name, %error, "{what} cannot be used");
            error.to_string()
        };
        let tokenizer = match &card.tokenizer {
            Some(source) => {
                Tokenizer::new(source).map(Arc::new).map_err(|error| log("tokenizer", error))
            }
            None => Err("it has no tokenizer".to_owned()),
        };
        let template = match &card.chat_template {
            Some(source) => ChatTemplate::new(source).map_err(|error| log("chat template", error)),
            None => Err("it has no chat template".to_owned()),
        };
        let text_of = |token: Option<TokenId>| {
            token.and_then(|id| tokenizer.as_ref().ok().map(|tokenizer| tokenizer.token_text(id)))
        };
        Self {
            system_fingerprint: short_hash(&fingerprint),
            bos_text: text_of(card.bos_token_id),
            eos_text: text_of(card.eos_token_ids.first().copied()),
            bos: card.bos_token_id.filter(|_| card.add_bos),
            fingerprint,
            tokenizer,
            template,
            vocab_size: card.vocab_size,
            eos_token_ids: card.eos_token_ids,
            sampling_defaults: card.sampling_defaults,
        }
    }
}

fn short_hash(fingerprint: &Fingerprint) -> String {
    let mut hasher = blake3::Hasher::new();
    for part in [&fingerprint.weights, &fingerprint.build, &fingerprint.instruction_set] {
        hasher.update(&(part.len() as u64).to_le_bytes());
        hasher.update(part.as_bytes());
    }
    format!("fp_{}", &hasher.finalize().to_hex()[..12])
}

/// Models by engine, each described at its first use.
pub(crate) struct Models {
    view: View,
    describe_timeout: Duration,
    /// Whether requests have what a model's makers recommend where they say nothing else.
    has_defaults: bool,
    entries: Mutex<BTreeMap<String, Entry>>,
}

struct Entry {
    engine: Arc<dyn EngineApi>,
    cell: Arc<OnceCell<Arc<Served>>>,
    /// What the engine that had this id before served: the same fingerprint saves building again.
    previous: Option<Arc<ModelText>>,
}

impl Models {
    pub(crate) fn new(view: View, describe_timeout: Duration, has_defaults: bool) -> Self {
        Self { view, describe_timeout, has_defaults, entries: Mutex::default() }
    }

    /// An engine that serves `name`. Fails while none can be reached, and tries anew each time.
    pub(crate) async fn find(&self, name: &str) -> Result<Arc<Served>, ApiError> {
        let snapshot = self.view.snapshot();
        let member = snapshot.values().find(|member| member.served_name == name);
        self.served(member.ok_or_else(|| ApiError::model_not_found(name))?).await
    }

    /// As [`Models::find`]; without a name, the only model there is.
    pub(crate) async fn find_or_only(&self, name: Option<&str>) -> Result<Arc<Served>, ApiError> {
        if let Some(name) = name {
            return self.find(name).await;
        }
        let snapshot = self.view.snapshot();
        let mut names: Vec<&str> =
            snapshot.values().map(|member| member.served_name.as_str()).collect();
        names.sort_unstable();
        names.dedup();
        match names.as_slice() {
            [only] => self.find(only).await,
            _ => Err(ApiError::missing("model")),
        }
    }

    /// What one engine serves.
    pub(crate) async fn served(&self, member: &Member) -> Result<Arc<Served>, ApiError> {
        let (cell, previous) = self.entry(member);
        let served = cell
            .get_or_try_init(|| {
                describe(member, previous, self.describe_timeout, self.has_defaults)
            })
            .await?;
        Ok(Arc::clone(served))
    }

    fn entry(&self, member: &Member) -> (Arc<OnceCell<Arc<Served>>>, Option<Arc<ModelText>>) {
        // A panic while the lock is held leaves the map whole.
        let mut entries = self.entries.lock().unwrap_or_else(PoisonError::into_inner);
        let known = entries.get(&member.id);
        if known.is_none_or(|entry| !Arc::ptr_eq(&entry.engine, &member.engine)) {
            let previous = known.and_then(|entry| {
                entry
                    .cell
                    .get()
                    .map(|served| Arc::clone(&served.text))
                    .or_else(|| entry.previous.clone())
            });
            let entry =
                Entry { engine: Arc::clone(&member.engine), cell: Arc::default(), previous };
            entries.insert(member.id.clone(), entry);
            let snapshot = self.view.snapshot();
            entries.retain(|id, _| id == &member.id || snapshot.contains_key(id));
        }
        let entry = &entries[&member.id];
        (Arc::clone(&entry.cell), entry.previous.clone())
    }
}

async fn describe(
    member: &Member,
    previous: Option<Arc<ModelText>>,
    limit: Duration,
    has_defaults: bool,
) -> Result<Arc<Served>, ApiError> {
    let mut description = timeout(limit, member.engine.describe())
        .await
        .map_err(|_| ApiError::unavailable("The model's engine does not answer"))??;
    let limits = description.limits;
    if !has_defaults {
        description.card.sampling_defaults = SamplingDefaults::default();
    }
    let text = match previous.filter(|text| text.fingerprint == description.fingerprint) {
        Some(text) => text,
        None => tokio::task::spawn_blocking(|| Arc::new(ModelText::new(description)))
            .await
            .map_err(|error| {
                tracing::error!(%error, "building the tokenizer failed");
                ApiError::internal("The model's tokenizer cannot be built")
            })?,
    };
    let (name, engine) = (member.served_name.clone(), Arc::clone(&member.engine));
    Ok(Arc::new(Served { name, engine, text, limits, created: crate::stream::unix_seconds() }))
}

/// Refuses more logprobs than the engine gives; `field` is the one that asks for those of the answer.
pub(crate) fn check_logprobs(
    served: &Served,
    options: &Options,
    field: &str,
) -> Result<(), ApiError> {
    let limit = served.limits.max_top_logprobs;
    let asked =
        [(field, options.sampling.top_logprobs), ("prompt_logprobs", options.prompt_logprobs)];
    match asked.iter().find(|(_, top)| top.is_some_and(|top| u32::from(top) > limit)) {
        Some((field, _)) => {
            Err(ApiError::invalid(*field, format!("this model gives at most {limit}")))
        }
        None => Ok(()),
    }
}

/// `GET /v1/models`.
pub(crate) async fn list(State(app): State<App>) -> Response {
    let mut models: BTreeMap<String, Value> = BTreeMap::new();
    for member in app.view.snapshot().values() {
        let served = app.models.served(member).await.ok();
        models
            .entry(member.served_name.clone())
            .or_insert_with(|| model_object(member, served.as_deref()));
    }
    let data: Vec<Value> = models.into_values().collect();
    axum::Json(json!({"object": "list", "data": data})).into_response()
}

/// `GET /v1/models/{id}`.
pub(crate) async fn get(
    State(app): State<App>,
    Path(id): Path<String>,
) -> Result<Response, ApiError> {
    let snapshot = app.view.snapshot();
    let member = snapshot.values().find(|member| member.served_name == id);
    let member = member.ok_or_else(|| ApiError::model_not_found(&id))?;
    let served = app.models.served(member).await.ok();
    Ok(axum::Json(model_object(member, served.as_deref())).into_response())
}

/// A model in OpenAI's form. What is not known before the engine is up is null.
fn model_object(member: &Member, served: Option<&Served>) -> Value {
    json!({
        "id": member.served_name,
        "object": "model",
        "created": served.map_or(0, |served| served.created),
        "owned_by": "oarlock",
        "root": member.served_name,
        "parent": null,
        "max_model_len": served.map(|served| served.limits.max_sequence_tokens),
    })
}
