//! Writes GGUF files: any header a test wants, and a tiny working model.

use std::io;
use std::path::Path;

/// Tensors begin at multiples of this.
const ALIGNMENT: usize = 32;

/// GGUF's numbers of the value types used here.
mod kind {
    pub(super) const U16: u32 = 2;
    pub(super) const U32: u32 = 4;
    pub(super) const I32: u32 = 5;
    pub(super) const F32: u32 = 6;
    pub(super) const STRING: u32 = 8;
    pub(super) const ARRAY: u32 = 9;
}

/// Builds a GGUF file in memory. Nothing is checked: tests also write what is wrong.
#[derive(Clone, Debug, Default)]
pub struct GgufWriter {
    keys: Vec<u8>,
    num_keys: u64,
    tensors: Vec<Tensor>,
}

#[derive(Clone, Debug)]
struct Tensor {
    name: String,
    dimensions: Vec<u64>,
    kind: u32,
    data: Vec<u8>,
}

fn string(text: &str) -> Vec<u8> {
    [&(text.len() as u64).to_le_bytes(), text.as_bytes()].concat()
}

impl GgufWriter {
    /// A metadata key of any type number with its encoded value.
    #[must_use]
    pub fn raw_key(mut self, key: &str, kind: u32, value: &[u8]) -> Self {
        self.keys.extend([&string(key)[..], &kind.to_le_bytes(), value].concat());
        self.num_keys += 1;
        self
    }

    /// A string.
    #[must_use]
    pub fn string(self, key: &str, value: &str) -> Self {
        self.raw_key(key, kind::STRING, &string(value))
    }

    /// A 32-bit count.
    #[must_use]
    pub fn u32(self, key: &str, value: u32) -> Self {
        self.raw_key(key, kind::U32, &value.to_le_bytes())
    }

    /// A 16-bit count.
    #[must_use]
    pub fn u16(self, key: &str, value: u16) -> Self {
        self.raw_key(key, kind::U16, &value.to_le_bytes())
    }

    /// A float.
    #[must_use]
    pub fn f32(self, key: &str, value: f32) -> Self {
        self.raw_key(key, kind::F32, &value.to_le_bytes())
    }

    /// An array of strings.
    #[must_use]
    pub fn strings<T: AsRef<str>>(self, key: &str, values: &[T]) -> Self {
        let elements = values.iter().flat_map(|value| string(value.as_ref()));
        let head = [&kind::STRING.to_le_bytes()[..], &(values.len() as u64).to_le_bytes()].concat();
        self.raw_key(key, kind::ARRAY, &head.into_iter().chain(elements).collect::<Vec<_>>())
    }

    /// An array of signed integers.
    #[must_use]
    pub fn i32s(self, key: &str, values: &[i32]) -> Self {
        let elements = values.iter().flat_map(|value| value.to_le_bytes());
        let head = [&kind::I32.to_le_bytes()[..], &(values.len() as u64).to_le_bytes()].concat();
        self.raw_key(key, kind::ARRAY, &head.into_iter().chain(elements).collect::<Vec<_>>())
    }

    /// A tensor: dimensions innermost first, GGUF's type number, its bytes.
    #[must_use]
    pub fn tensor(mut self, name: &str, dimensions: &[u64], kind: u32, bytes: &[u8]) -> Self {
        self.tensors.push(Tensor {
            name: name.to_owned(),
            dimensions: dimensions.to_vec(),
            kind,
            data: bytes.to_vec(),
        });
        self
    }

    /// The file's bytes.
    pub fn finish(self) -> Vec<u8> {
        let mut file = b"GGUF\x03\x00\x00\x00".to_vec();
        file.extend((self.tensors.len() as u64).to_le_bytes());
        file.extend(self.num_keys.to_le_bytes());
        file.extend(self.keys);
        let mut data = Vec::new();
        for tensor in &self.tensors {
            file.extend(string(&tensor.name));
            file.extend((tensor.dimensions.len() as u32).to_le_bytes());
            file.extend(tensor.dimensions.iter().flat_map(|size| size.to_le_bytes()));
            file.extend(tensor.kind.to_le_bytes());
            file.extend((data.len() as u64).to_le_bytes());
            data.extend_from_slice(&tensor.data);
            data.resize(data.len().next_multiple_of(ALIGNMENT), 0);
        }
        file.resize(file.len().next_multiple_of(ALIGNMENT), 0);
        file.extend(data);
        file
    }

    /// The bytes of so many files, as `gguf-split` cuts one: the first has the metadata, and each some of the
    /// tensors, in order; the first none where it is `bare`.
    pub fn finish_parts(self, count: usize, bare: bool) -> Vec<Vec<u8>> {
        let Self { keys, num_keys, tensors } = self;
        let (num_tensors, without) = (tensors.len(), usize::from(bare));
        let edge = |part: usize| part.saturating_sub(without) * num_tensors / (count - without);
        let part = |number: usize| {
            let (keys, num_keys) =
                if number == 0 { (keys.clone(), num_keys) } else { (Vec::new(), 0) };
            let tensors = tensors[edge(number)..edge(number + 1)].to_vec();
            Self { keys, num_keys, tensors }
                .u16("split.no", number as u16)
                .u16("split.count", count as u16)
                .raw_key("split.tensors.count", kind::I32, &(num_tensors as i32).to_le_bytes())
                .finish()
        };
        (0..count).map(part).collect()
    }
}

/// Shape of the tiny model.
const LAYERS: u32 = 2;
const HIDDEN: u64 = 64;
const HEADS: u32 = 4;
const KV_HEADS: u32 = 2;
const HEAD_DIM: u64 = 16;
const FEED_FORWARD: u64 = 128;

/// Tokens of the tiny model's vocabulary: 256 bytes and three special ones.
pub const TINY_VOCABULARY: u64 = 259;
/// Positions of the tiny model.
pub const TINY_CONTEXT: u32 = 1024;

/// A tiny Qwen2 model with random weights of several types: small enough that a test can compute with
/// it in milliseconds, whole enough that every part of the system takes it.
#[derive(Clone, Copy, Debug)]
pub struct TinyModel {
    /// Decides the weights.
    pub seed: u64,
    /// Computing this token gives NaN: a request with it in its prompt must fail, and fail alone.
    pub poison: Option<u32>,
    /// The name of its pre-tokenizer.
    pub pre_tokenizer: &'static str,
}

impl Default for TinyModel {
    fn default() -> Self {
        Self { seed: 7, poison: None, pre_tokenizer: "qwen2" }
    }
}

impl TinyModel {
    /// Writes the model in so many files into a folder: `tiny-00001-of-00003.gguf`.
    pub fn write_parts(self, folder: &Path, count: usize) -> io::Result<()> {
        for (index, bytes) in tiny_model(self).finish_parts(count, false).iter().enumerate() {
            let name = format!("tiny-{:05}-of-{count:05}.gguf", index + 1);
            std::fs::write(folder.join(name), bytes)?;
        }
        Ok(())
    }

    /// Writes the model's file.
    pub fn write(self, path: &Path) -> io::Result<()> {
        std::fs::write(path, tiny_model(self).finish())
    }
}

fn tiny_model(model: TinyModel) -> GgufWriter {
    let mut random = Random(model.seed);
    let mut file = tiny_metadata(model);
    let (heads, kv) = (u64::from(HEADS) * HEAD_DIM, u64::from(KV_HEADS) * HEAD_DIM);
    let mut embedding = random.f16(HIDDEN * TINY_VOCABULARY);
    if let Some(poison) = model.poison {
        let row = 2 * HIDDEN as usize;
        embedding[poison as usize * row..][..row].fill(0xff);
    }
    file = file.tensor("token_embd.weight", &[HIDDEN, TINY_VOCABULARY], 1, &embedding);
    file = file.tensor(
        "output.weight",
        &[HIDDEN, TINY_VOCABULARY],
        8,
        &random.q8_0(HIDDEN * TINY_VOCABULARY),
    );
    file = file.tensor("output_norm.weight", &[HIDDEN], 0, &random.near_one(HIDDEN));
    for layer in 0..LAYERS {
        let name = |part: &str| format!("blk.{layer}.{part}");
        for (part, len) in [("attn_q.bias", heads), ("attn_k.bias", kv), ("attn_v.bias", kv)] {
            file = file.tensor(&name(part), &[len], 0, &random.near_one(len));
        }
        for part in ["attn_norm.weight", "ffn_norm.weight"] {
            file = file.tensor(&name(part), &[HIDDEN], 0, &random.near_one(HIDDEN));
        }
        for (part, columns, rows) in [
            ("attn_q.weight", HIDDEN, heads),
            ("attn_k.weight", HIDDEN, kv),
            ("attn_output.weight", heads, HIDDEN),
            ("ffn_gate.weight", HIDDEN, FEED_FORWARD),
            ("ffn_down.weight", FEED_FORWARD, HIDDEN),
        ] {
            file = file.tensor(&name(part), &[columns, rows], 8, &random.q8_0(columns * rows));
        }
        for (part, columns, rows) in
            [("attn_v.weight", HIDDEN, kv), ("ffn_up.weight", HIDDEN, FEED_FORWARD)]
        {
            file = file.tensor(&name(part), &[columns, rows], 1, &random.f16(columns * rows));
        }
    }
    file
}

fn tiny_metadata(model: TinyModel) -> GgufWriter {
    let mut tokens: Vec<String> = byte_alphabet().map(String::from).collect();
    let mut kinds = vec![1; tokens.len()];
    for special in ["<|endoftext|>", "<|im_start|>", "<|im_end|>"] {
        tokens.push(special.to_owned());
        kinds.push(3);
    }
    let template = "{% for message in messages %}<|im_start|>{{ message.role }}\n{{ message.content }}<|im_end|>\n\
                    {% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}";
    GgufWriter::default()
        .string("general.architecture", "qwen2")
        .string("general.name", "Tiny")
        .u32("qwen2.block_count", LAYERS)
        .u32("qwen2.context_length", TINY_CONTEXT)
        .u32("qwen2.embedding_length", HIDDEN as u32)
        .u32("qwen2.feed_forward_length", FEED_FORWARD as u32)
        .u32("qwen2.attention.head_count", HEADS)
        .u32("qwen2.attention.head_count_kv", KV_HEADS)
        .f32("qwen2.rope.freq_base", 10_000.0)
        .f32("qwen2.attention.layer_norm_rms_epsilon", 1e-6)
        .string("tokenizer.ggml.model", "gpt2")
        .string("tokenizer.ggml.pre", model.pre_tokenizer)
        .strings("tokenizer.ggml.tokens", &tokens)
        .i32s("tokenizer.ggml.token_type", &kinds)
        .strings::<&str>("tokenizer.ggml.merges", &[])
        .u32("tokenizer.ggml.eos_token_id", 258)
        .string("tokenizer.chat_template", template)
}

/// The characters that stand for the bytes 0 to 255 in byte-level BPE: a printable byte for itself,
/// the others for characters from U+0100 on, in order.
fn byte_alphabet() -> impl Iterator<Item = char> {
    let mut next_free = 0x100;
    (0..=255_u32).map(move |byte| {
        let printable = matches!(byte, 0x21..=0x7e | 0xa1..=0xac | 0xae..=0xff);
        let code = if printable {
            byte
        } else {
            next_free += 1;
            next_free - 1
        };
        char::from_u32(code).expect("a code below U+0200 is a character")
    })
}

/// A small generator (SplitMix64, Steele et al. 2014): the same seed gives the same weights.
struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mixed = (self.0 ^ (self.0 >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        mixed ^ (mixed >> 31)
    }

    fn near_one(&mut self, len: u64) -> Vec<u8> {
        let value = |random: u64| 0.75 + (random >> 40) as f32 / (1 << 25) as f32;
        (0..len).flat_map(|_| value(self.next()).to_le_bytes()).collect()
    }

    /// Floats of 16 bits with random sign and mantissa, from 2⁻³ up to 2⁻².
    fn f16(&mut self, len: u64) -> Vec<u8> {
        (0..len).flat_map(|_| ((self.next() as u16 & 0x83ff) | (12 << 10)).to_le_bytes()).collect()
    }

    /// Blocks of 32 random bytes with the scale 2⁻⁹.
    fn q8_0(&mut self, len: u64) -> Vec<u8> {
        let block = |random: &mut Self| {
            let scale = (6_u16 << 10).to_le_bytes();
            let values: Vec<u8> = (0..32).map(|_| random.next() as u8).collect();
            [&scale[..], &values].concat()
        };
        (0..len / 32).flat_map(|_| block(self)).collect()
    }
}
