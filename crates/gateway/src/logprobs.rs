//! Logprobs in OpenAI's two forms. Numbers are printed as the shortest decimal that reads back as the
//! same float32, so that their bits survive.

use std::sync::Arc;

use oarlock_text::Tokenizer;
use oarlock_types::{RankedToken, TokenId, TokenScore};
use serde::ser::SerializeMap;
use serde::{Serialize, Serializer};

use crate::generate::GeneratedToken;

/// What is printed for a probability of zero: JSON has no infinity. vLLM prints the same.
const LEAST_LOGPROB: f32 = -9999.0;

/// A logprob.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Logprob(f32);

impl Serialize for Logprob {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_f32(self.0.max(LEAST_LOGPROB))
    }
}

/// How tokens are written.
#[derive(Clone)]
pub(crate) struct Labels {
    pub(crate) tokenizer: Option<Arc<Tokenizer>>,
    /// As `token_id:N` instead of their text, which two tokens may share.
    pub(crate) as_ids: bool,
}

impl Labels {
    pub(crate) fn label(&self, id: TokenId) -> String {
        match &self.tokenizer {
            Some(tokenizer) if !self.as_ids => tokenizer.token_text(id),
            _ => format!("token_id:{id}"),
        }
    }

    /// The token's text, whatever labels are written as.
    pub(crate) fn text(&self, id: TokenId) -> String {
        let tokenizer = self.tokenizer.as_ref();
        tokenizer.map_or_else(String::new, |tokenizer| tokenizer.token_text(id))
    }

    fn bytes(&self, id: TokenId) -> Option<Vec<u8>> {
        self.tokenizer.as_ref().map(|tokenizer| tokenizer.token_bytes(id).to_vec())
    }
}

/// Logprobs of a chat choice.
#[derive(Serialize)]
pub(crate) struct ChatLogprobs {
    content: Vec<ChatToken>,
}

#[derive(Serialize)]
struct ChatToken {
    #[serde(flatten)]
    token: LabelledToken,
    top_logprobs: Vec<LabelledToken>,
}

#[derive(Serialize)]
struct LabelledToken {
    token: String,
    logprob: Logprob,
    bytes: Option<Vec<u8>>,
}

impl ChatLogprobs {
    pub(crate) fn new(tokens: &[GeneratedToken], labels: &Labels) -> Self {
        let labelled = |token: TokenId, logprob: f32| LabelledToken {
            token: labels.label(token),
            logprob: Logprob(logprob),
            bytes: labels.bytes(token),
        };
        let entry = |token: &GeneratedToken| {
            let score = token.score.clone().unwrap_or_default();
            let top =
                score.top.iter().map(|ranked| labelled(ranked.token, ranked.logprob)).collect();
            ChatToken { token: labelled(token.id, score.logprob), top_logprobs: top }
        };
        Self { content: tokens.iter().map(entry).collect() }
    }
}

/// Logprobs of a plain completion: parallel arrays.
#[derive(Default, Serialize)]
pub(crate) struct CompletionLogprobs {
    tokens: Vec<String>,
    token_logprobs: Vec<Option<Logprob>>,
    top_logprobs: Vec<Option<TopLogprobs>>,
    /// Characters before each token.
    text_offset: Vec<usize>,
}

/// Most likely tokens and their logprobs, best first; of equal labels the first one is kept.
struct TopLogprobs(Vec<(String, Logprob)>);

impl Serialize for TopLogprobs {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let mut map = serializer.serialize_map(Some(self.0.len()))?;
        for (token, logprob) in &self.0 {
            map.serialize_entry(token, logprob)?;
        }
        map.end()
    }
}

impl TopLogprobs {
    /// The `top` most likely ones, and the token that stands there itself.
    fn new(id: TokenId, score: &TokenScore, top: u8, labels: &Labels) -> Self {
        let mut entries: Vec<(String, Logprob)> = Vec::with_capacity(usize::from(top) + 1);
        let own = RankedToken { token: id, logprob: score.logprob };
        for ranked in score.top.iter().take(top.into()).chain([&own]) {
            let label = labels.label(ranked.token);
            if entries.iter().all(|(known, _)| *known != label) {
                entries.push((label, Logprob(ranked.logprob)));
            }
        }
        Self(entries)
    }
}

impl CompletionLogprobs {
    /// Appends one token; without a score (the first token of a prompt) its logprobs are null.
    pub(crate) fn push(
        &mut self,
        id: TokenId,
        score: Option<&TokenScore>,
        offset: usize,
        top: u8,
        labels: &Labels,
    ) {
        self.tokens.push(labels.label(id));
        self.token_logprobs.push(score.map(|score| Logprob(score.logprob)));
        self.top_logprobs.push(score.map(|score| TopLogprobs::new(id, score, top, labels)));
        self.text_offset.push(offset);
    }

    pub(crate) fn extend(&mut self, tokens: &[GeneratedToken], top: u8, labels: &Labels) {
        for token in tokens {
            self.push(token.id, token.score.as_ref(), token.text_offset, top, labels);
        }
    }
}

/// Logprobs of a prompt in vLLM's form: for each token but the first an object by token id, the token
/// that stands there first, then the most likely ones.
#[derive(Serialize)]
#[serde(transparent)]
pub(crate) struct PromptLogprobs(Vec<Option<PromptPlace>>);

struct PromptPlace(Vec<(TokenId, PromptToken)>);

#[derive(Serialize)]
struct PromptToken {
    logprob: Logprob,
    rank: u32,
    decoded_token: String,
}

impl Serialize for PromptPlace {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_map(self.0.iter().map(|(id, token)| (id.0, token)))
    }
}

impl PromptLogprobs {
    pub(crate) fn new(
        prompt: &[TokenId],
        scores: &[Option<TokenScore>],
        top: u8,
        labels: &Labels,
    ) -> Self {
        let place = |(id, score): (&TokenId, &Option<TokenScore>)| {
            let score = score.as_ref()?;
            let token = |id: TokenId, logprob: f32, rank: u32| {
                (
                    id,
                    PromptToken { logprob: Logprob(logprob), rank, decoded_token: labels.text(id) },
                )
            };
            let mut entries = vec![token(*id, score.logprob, score.rank)];
            let likely = (1..).zip(&score.top).take(top.into());
            entries.extend(
                likely
                    .filter(|(_, ranked)| ranked.token != *id)
                    .map(|(rank, ranked)| token(ranked.token, ranked.logprob, rank)),
            );
            Some(PromptPlace(entries))
        };
        Self(prompt.iter().zip(scores).map(place).collect())
    }
}
