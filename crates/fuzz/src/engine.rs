//! An engine that answers everything with two tokens.

use futures::future::BoxFuture;
use futures::{StreamExt, stream};
use oarlock_rpc::{EngineApi, EngineError, EventStream};
use oarlock_types::{
    BpeVocabulary, EngineDescription, EngineLimits, EngineState, EngineStatus, EventKind,
    Fingerprint, FinishReason, ModelCard, Request, SampledToken, SamplingDefaults, TokenId,
    TokenKind, TokenScore, TokenizerSource, Usage,
};

/// Tokens of one sequence at most.
const CONTEXT: u32 = 512;
/// Ends an answer.
const END: u32 = 256;
const TEMPLATE: &str = "{% for m in messages %}{{ m.role }}: {{ m.content }}\n{% endfor %}\
    {% if tools %}{{ tools | tojson }}{% endif %}{% if add_generation_prompt %}assistant:{% endif %}";

pub(crate) struct TwoTokens;

fn vocabulary() -> BpeVocabulary {
    // GPT-2's alphabet: bytes that are not printable are shifted.
    let mut shifted = (0x100..).filter_map(char::from_u32);
    let letter = |byte: u8| match byte {
        0x21..=0x7e | 0xa1..=0xac | 0xae..=0xff => char::from(byte),
        _ => shifted.next().expect("there are more characters than bytes"),
    };
    let mut tokens: Vec<String> = (0..=u8::MAX).map(letter).map(String::from).collect();
    let mut kinds = vec![TokenKind::Normal; tokens.len()];
    tokens.push("<|end|>".to_owned());
    kinds.push(TokenKind::Control);
    BpeVocabulary { pre: "gpt-2".to_owned(), tokens, kinds, merges: Vec::new() }
}

impl EngineApi for TwoTokens {
    fn describe(&self) -> BoxFuture<'_, Result<EngineDescription, EngineError>> {
        let description = EngineDescription {
            served_name: "m".to_owned(),
            card: ModelCard {
                architecture: "none".to_owned(),
                name: "none".to_owned(),
                vocab_size: END + 1,
                context_length: CONTEXT,
                num_parameters: 0,
                tokenizer: Some(TokenizerSource::Bpe(vocabulary())),
                chat_template: Some(TEMPLATE.to_owned()),
                eos_token_ids: vec![TokenId(END)],
                bos_token_id: None,
                add_bos: false,
                sampling_defaults: SamplingDefaults::default(),
            },
            fingerprint: Fingerprint::default(),
            limits: EngineLimits {
                max_sequence_tokens: CONTEXT,
                max_seqs: 4,
                max_queued: 4,
                max_top_logprobs: 20,
                max_queued_tokens: 4096,
            },
        };
        Box::pin(async move { Ok(description) })
    }

    fn generate(&self, request: Request) -> BoxFuture<'_, Result<EventStream, EngineError>> {
        // What an engine relies on.
        assert!(request.tokens.iter().all(|token| token.0 <= END), "an unknown token got through");
        assert!(request.num_prompt as usize == request.tokens.len() && !request.tokens.is_empty());
        assert!(request.num_prompt + request.stop.max_tokens <= CONTEXT, "it does not fit");
        assert!(request.stop.stop_token_ids.is_sorted());
        let wants_score = request.sampling.top_logprobs.is_some();
        let token = |id| {
            let score = wants_score.then(TokenScore::default);
            EventKind::Token(SampledToken { token: TokenId(id), score })
        };
        let mut events = vec![EventKind::Started { cached_tokens: 0 }];
        if request.prompt_logprobs.is_some() {
            let scores = vec![TokenScore::default(); request.tokens.len() - 1];
            events.push(EventKind::PromptScores { first: 1, scores });
        }
        events.extend([token(97), token(0xc3)].into_iter().take(request.stop.max_tokens as usize));
        let reason = FinishReason::Length;
        events.push(EventKind::Finished { reason, usage: Usage::default() });
        Box::pin(async move { Ok(stream::iter(events.into_iter().map(Ok)).boxed()) })
    }

    fn status(&self) -> BoxFuture<'_, Result<EngineStatus, EngineError>> {
        Box::pin(async {
            Ok(EngineStatus { state: EngineState::Ready, ..EngineStatus::default() })
        })
    }
}
