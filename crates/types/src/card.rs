//! What a model and a replica are: the facts that the gateway needs of them.

use crate::{Epoch, TokenId};

/// A served model, as far as text and validation are concerned.
#[derive(Clone, Debug, PartialEq)]
pub struct ModelCard {
    /// The architecture, as the weight file names it (`qwen2`, `gemma3`).
    pub architecture: String,
    /// A human-readable name from the weight file.
    pub name: String,
    /// Entries of the vocabulary (rows of the output layer).
    pub vocab_size: u32,
    /// Positions the model was made for.
    pub context_length: u32,
    /// Parameters of all tensors.
    pub num_parameters: u64,
    /// Where the tokenizer comes from; `None` serves token ids only.
    pub tokenizer: Option<TokenizerSource>,
    /// The Jinja chat template, if the model has one.
    pub chat_template: Option<String>,
    /// Tokens that end a sequence, ascending.
    pub eos_token_ids: Vec<TokenId>,
    /// Token put before a prompt.
    pub bos_token_id: Option<TokenId>,
    /// Whether the prompt of a plain completion begins with `bos_token_id`.
    pub add_bos: bool,
    /// What the model's makers recommend.
    pub sampling_defaults: SamplingDefaults,
}

/// How a model's makers recommend that its tokens are drawn, where they say so: what holds for a request that
/// says nothing else.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct SamplingDefaults {
    /// From 0 to 2.
    pub temperature: Option<f32>,
    /// 0 keeps all tokens.
    pub top_k: Option<u32>,
    /// Above 0 and up to 1.
    pub top_p: Option<f32>,
    /// From 0 to 1.
    pub min_p: Option<f32>,
    /// From 0.01 to 100.
    pub repetition_penalty: Option<f32>,
    /// Tokens of an answer, at least 1.
    pub max_tokens: Option<u32>,
}

/// Where a tokenizer comes from.
#[derive(Clone, Debug, PartialEq)]
pub enum TokenizerSource {
    /// Byte-level BPE with an explicit vocabulary (GGUF's `gpt2` model).
    Bpe(BpeVocabulary),
    /// A `tokenizer.json` file of the `tokenizers` library.
    Json(String),
    /// SentencePiece's BPE: pieces with scores (GGUF's `llama` model; Gemma).
    SentencePiece(SentencePieceVocabulary),
}

/// A byte-level BPE vocabulary.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct BpeVocabulary {
    /// Which pre-tokenizer splits the text first, by llama.cpp's name (`tokenizer.ggml.pre`).
    pub pre: String,
    /// Texts of the tokens in byte-level alphabet, by id.
    pub tokens: Vec<String>,
    /// What each token is, by id.
    pub kinds: Vec<TokenKind>,
    /// Merges in order of rank, `left right`.
    pub merges: Vec<String>,
}

/// A SentencePiece vocabulary of pieces with scores.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct SentencePieceVocabulary {
    /// Texts of the pieces, by id; a space is written `▁` (U+2581).
    pub tokens: Vec<String>,
    /// Scores by id: of two pairs of pieces that could be joined, the higher one goes first.
    pub scores: Vec<f32>,
    /// What each token is, by id.
    pub kinds: Vec<TokenKind>,
    /// Whether a space is put before a text.
    pub add_space_prefix: bool,
}

/// What a token of the vocabulary is (GGUF's `token_type`).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum TokenKind {
    /// Ordinary text.
    Normal = 1,
    /// Stands for text that no other token covers.
    Unknown = 2,
    /// Special: matched before ordinary text, not part of the answer's text.
    Control = 3,
    /// Added by the user: matched before ordinary text, part of the answer's text.
    UserDefined = 4,
    /// Never produced.
    Unused = 5,
    /// One raw byte.
    Byte = 6,
}

/// Same fingerprint, same bits: a request may move between replicas that agree on it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Fingerprint {
    /// Hash of the weight files, hexadecimal.
    pub weights: String,
    /// Version and build of the program.
    pub build: String,
    /// The instruction set that the kernels use.
    pub instruction_set: String,
}

/// Which part of a tensor-parallel group a worker is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Shard {
    /// Its number, from 0. Rank 0 samples.
    pub rank: u32,
    /// Ranks of the group: 1, 2, 4 or 8.
    pub ranks: u32,
}

impl Shard {
    /// The one rank of a group that is not parallel.
    pub const WHOLE: Self = Self { rank: 0, ranks: 1 };
}

impl Default for Shard {
    fn default() -> Self {
        Self::WHOLE
    }
}

/// What a worker is asked to hold.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct WorkerLimits {
    /// Which life of the group this is.
    pub epoch: Epoch,
    /// Sequences that run at the same time at most.
    pub num_slots: u32,
    /// Blocks of the KV cache.
    pub num_blocks: u32,
    /// Tokens computed in one step at most.
    pub max_step_tokens: u32,
    /// Tokens of one sequence at most; 0 takes the model's context length.
    pub max_sequence_tokens: u32,
}

/// A worker's answer once its weights are loaded.
#[derive(Clone, Debug, PartialEq)]
pub struct WorkerDescription {
    /// The model.
    pub card: ModelCard,
    /// What decides the bits.
    pub fingerprint: Fingerprint,
    /// The limits in force, with every 0 resolved.
    pub limits: WorkerLimits,
    /// Bytes that weights, cache and workspace take.
    pub memory_bytes: u64,
}

/// How far loading has come.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct LoadProgress {
    /// Bytes of weights loaded.
    pub loaded_bytes: u64,
    /// Bytes of weights in all.
    pub total_bytes: u64,
}

/// Limits that an engine tells its clients, so that they can refuse early.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct EngineLimits {
    /// Tokens of one sequence at most: the model's context, or what the KV cache can hold.
    pub max_sequence_tokens: u32,
    /// Sequences that run at the same time at most.
    pub max_seqs: u32,
    /// Sequences that wait at most.
    pub max_queued: u32,
    /// Most likely tokens that a request may ask logprobs for.
    pub max_top_logprobs: u32,
    /// Tokens of waiting sequences at most.
    pub max_queued_tokens: u64,
}
