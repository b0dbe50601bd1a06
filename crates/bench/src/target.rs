//! The server under test: which model, which fields it takes, and what a token is to it.

use std::sync::Arc;
use std::time::{Duration, Instant};

use serde_json::{Value, json};

use crate::client::HttpClient;
use crate::error::{BenchError, Failure, FailureKind};
use crate::options::Options;
use crate::progress::Stream;
use crate::protocol::{self, Conversation, Dialect};
use crate::random::Random;
use crate::request::{Answer, Request, send};
use crate::words;
use crate::workload::{Material, Piece, Turn, Workload};

/// Salt of the words that are sent before anything is measured.
const STREAM: u64 = 0x0050_524F_4245;
/// Patience with `/v1/models` and `/tokenize`, which compute nothing.
const QUICK: Duration = Duration::from_secs(30);
/// Word counts of the two prompts that tell tokens per word; the smaller pair is for small contexts.
const CALIBRATION: [(usize, usize); 2] = [(16, 272), (8, 40)];
/// Tokens of the prompt that shows whether token ids are taken.
const PROBE_TOKENS: usize = 8;

/// A server that is ready to be measured.
#[derive(Clone)]
pub(crate) struct Target {
    pub(crate) client: HttpClient,
    pub(crate) model: String,
    pub(crate) dialect: Dialect,
    pub(crate) material: Material,
    path: &'static str,
    temperature: f64,
    timeout: Duration,
}

impl Target {
    /// Finds out all there is to know. Sends a handful of tiny requests.
    pub(crate) async fn prepare(options: &Options) -> Result<Self, BenchError> {
        let client = HttpClient::new(&options.url, options.api_key.as_deref())?;
        let model = model(&client, options.model.as_deref()).await?;
        let candidates = Dialect::candidates(options.endpoint, options.ignore_eos);
        let mut target = Self {
            client,
            model,
            dialect: candidates[0],
            material: Material::Words { tokens_per_word: 1.0, overhead: 0.0 },
            path: options.endpoint.path(),
            temperature: options.temperature,
            timeout: options.timeout,
        };
        target.find_dialect(options, &candidates).await?;
        let tokens = if Workload::can_use_tokens(options) {
            target.find_tokens(options).await
        } else {
            None
        };
        target.material = match tokens {
            Some(tokens) => tokens,
            None => target.count_words(options).await?,
        };
        Ok(target)
    }

    /// Sends one request of a conversation; its times count from `due`.
    pub(crate) async fn ask(
        &self,
        conversation: &Conversation,
        turn: &Turn,
        due: Instant,
        stream: &mut Stream,
    ) -> Result<Answer, Failure> {
        let body = protocol::body(&self.model, self.dialect, self.temperature, conversation, turn);
        let request = Request { path: self.path, body: body.into(), timeout: self.timeout, due };
        send(&self.client, request, stream).await
    }

    /// One request for a single token.
    async fn probe(&self, options: &Options, piece: Piece) -> Result<Answer, Failure> {
        let mut conversation = Conversation::new(options.endpoint);
        conversation.ask(piece.clone());
        let turn = Turn { piece, output_tokens: 1, seed: 0 };
        self.ask(&conversation, &turn, Instant::now(), &mut Stream::default()).await
    }

    /// The first set of fields that the server takes.
    async fn find_dialect(
        &mut self,
        options: &Options,
        candidates: &[Dialect],
    ) -> Result<(), BenchError> {
        let mut first_failure = None;
        for dialect in candidates {
            self.dialect = *dialect;
            let hello = Piece::Text("hello".to_owned());
            let Err(failure) = self.probe(options, hello).await else { return Ok(()) };
            let may_be_a_field = matches!(failure.kind, FailureKind::Status(400 | 422));
            let failure = first_failure.get_or_insert(failure);
            if !may_be_a_field {
                return Err(self.refused(failure));
            }
        }
        Err(first_failure.map_or_else(|| BenchError::Model(String::new()), |f| self.refused(&f)))
    }

    fn refused(&self, failure: &Failure) -> BenchError {
        let url = format!("{}{}", self.client.base(), self.path);
        explain(&url, failure)
    }

    /// Token ids of words, where the server tells them and takes them as a prompt.
    async fn find_tokens(&self, options: &Options) -> Option<Material> {
        let text = words::list().join(" ");
        // vLLM's and our own form, then llama.cpp's.
        let forms = [json!({"model": self.model, "prompt": text}), json!({"content": text})];
        for form in forms {
            let answer = self.client.post("/tokenize", form.to_string().into_bytes());
            let Ok(Ok(answer)) = tokio::time::timeout(QUICK, answer).await else { continue };
            let Some(tokens) = token_ids(&answer) else { continue };
            // The ends may be special tokens.
            let inner = tokens.get(2..tokens.len().saturating_sub(2)).unwrap_or_default();
            if inner.len() < PROBE_TOKENS {
                continue;
            }
            let prompt = Piece::Tokens(inner[..PROBE_TOKENS].to_vec());
            let answer = self.probe(options, prompt).await.ok()?;
            let is_exact = answer.usage?.prompt_tokens == PROBE_TOKENS as u64;
            return is_exact.then(|| Material::Tokens(Arc::from(inner)));
        }
        None
    }

    /// Tokens per word and per prompt, from the usage of two prompts.
    async fn count_words(&self, options: &Options) -> Result<Material, BenchError> {
        let mut random = Random::new(&[STREAM, options.seed]);
        for (index, (few, many)) in CALIBRATION.into_iter().enumerate() {
            let mut counts = [0.0; 2];
            for (count, num_words) in counts.iter_mut().zip([few, many]) {
                let text = words::text(&mut random, num_words);
                match self.probe(options, Piece::Text(text)).await {
                    Ok(answer) => {
                        *count = answer.usage.map_or(0.0, |usage| usage.prompt_tokens as f64);
                    }
                    // Too long for a small model: the next pair is shorter.
                    Err(failure)
                        if failure.kind == FailureKind::Status(400)
                            && index + 1 < CALIBRATION.len() => {}
                    Err(failure) => return Err(self.refused(&failure)),
                }
            }
            let tokens_per_word = (counts[1] - counts[0]) / (many - few) as f64;
            if tokens_per_word > 0.0 {
                let overhead = (counts[0] - tokens_per_word * few as f64).max(0.0);
                return Ok(Material::Words { tokens_per_word, overhead });
            }
        }
        Ok(Material::Words { tokens_per_word: 1.0, overhead: 0.0 })
    }
}

/// The model to ask: the one that was named, or the only one there is.
async fn model(client: &HttpClient, named: Option<&str>) -> Result<String, BenchError> {
    let url = format!("{}/v1/models", client.base());
    let answer = tokio::time::timeout(QUICK, client.get("/v1/models")).await;
    let answer = answer.unwrap_or_else(|_| {
        Err(Failure::new(FailureKind::Timeout, format!("no answer within {QUICK:?}")))
    });
    let listed = match (answer, named) {
        (Ok(listed), _) => listed,
        // A server need not list its models to serve them.
        (Err(Failure { kind: FailureKind::Status(404 | 405), .. }), Some(_)) => Value::Null,
        (Err(failure), _) => return Err(explain(&url, &failure)),
    };
    if let Some(named) = named {
        return Ok(named.to_owned());
    }
    let models = listed["data"].as_array().map(Vec::as_slice).unwrap_or_default();
    let mut ids: Vec<&str> = models.iter().filter_map(|model| model["id"].as_str()).collect();
    match ids.as_slice() {
        [only] => Ok((*only).to_owned()),
        [] => Err(BenchError::Model("none".to_owned())),
        _ => {
            let num_more = ids.len().saturating_sub(20);
            ids.truncate(20);
            let more = if num_more > 0 { format!(" and {num_more} more") } else { String::new() };
            Err(BenchError::Model(ids.join(", ") + &more))
        }
    }
}

/// What a failure before the first measured request means for the person who asked.
fn explain(url: &str, failure: &Failure) -> BenchError {
    let url = url.to_owned();
    match failure.kind {
        FailureKind::Connect => BenchError::Unreachable { url, reason: failure.message.clone() },
        FailureKind::Status(401 | 403) => {
            BenchError::Unauthorized { url, message: failure.message.clone() }
        }
        _ => BenchError::Refused { url, failure: failure.to_string() },
    }
}

/// The ids of an answer of `/tokenize`; `None` where it is something else.
fn token_ids(answer: &Value) -> Option<Vec<u32>> {
    let tokens = answer["tokens"].as_array()?;
    tokens.iter().map(|token| token.as_u64().and_then(|id| u32::try_from(id).ok())).collect()
}
