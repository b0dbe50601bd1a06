//! Every tensor that a model has: its shape, and what of it one rank takes. One list says what is missing, what
//! is too much, and how many bytes a rank loads.

use crate::sharding::RankRanges;
use crate::spec::DecoderSpec;

/// One tensor.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Place {
    pub(crate) name: String,
    pub(crate) rows: usize,
    pub(crate) columns: usize,
    pub(crate) cut: Cut,
    pub(crate) role: Role,
}

/// What a tensor is to a backend.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Role {
    /// The embedding.
    Table,
    /// The embedding, which is the output layer, too.
    TiedTable,
    Linear,
    /// Norms, biases, routers: float32.
    Vector,
}

/// Along which unit ranks share a tensor.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Cut {
    /// Every rank has all of it.
    Whole,
    Vocabulary,
    Heads,
    KvHeads,
    /// Queries, keys and values in one.
    Qkv,
    FeedForward,
    /// Of experts.
    ExpertFeedForward,
}

impl Cut {
    /// How much a rank takes: so many of so many.
    pub(crate) fn share(self, spec: &DecoderSpec, ranges: &RankRanges) -> (usize, usize) {
        let (heads, kv_heads) = (ranges.heads.len(), ranges.kv_heads.len());
        match self {
            Self::Whole => (1, 1),
            Self::Vocabulary => (ranges.own_vocabulary().len(), spec.vocab_size),
            Self::Heads => (heads, spec.num_heads),
            Self::KvHeads => (kv_heads, spec.num_kv_heads),
            Self::Qkv => (heads + 2 * kv_heads, spec.num_heads + 2 * spec.num_kv_heads),
            Self::FeedForward => (ranges.feed_forward.len(), spec.feed_forward),
            Self::ExpertFeedForward => {
                let whole = spec.experts.as_ref().map_or(1, |experts| experts.feed_forward);
                (ranges.expert_feed_forward.len(), whole)
            }
        }
    }
}

/// How a layer's experts are stored.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum ExpertStorage {
    /// A tensor for each of gate, up and down of each expert.
    Single,
    /// All gates in one tensor, all ups, all downs.
    Stacked,
    /// The same, with gate and up of an expert in one.
    StackedGateUp,
}

impl ExpertStorage {
    pub(crate) fn of(layer: usize, has: &dyn Fn(&str) -> bool) -> Self {
        if has(&format!("blk.{layer}.ffn_gate_up_exps.weight")) {
            Self::StackedGateUp
        } else if has(&format!("blk.{layer}.ffn_gate_exps.weight")) {
            Self::Stacked
        } else {
            Self::Single
        }
    }
}

/// All tensors of a model, layer by layer; `has` says which a file has, where there is a choice.
pub(crate) fn layout<'a>(
    spec: &'a DecoderSpec,
    has: &'a dyn Fn(&str) -> bool,
) -> impl Iterator<Item = Place> + 'a {
    let tied = is_tied(spec, has);
    let (vocabulary, hidden) = (spec.vocab_size, spec.hidden);
    let place = |name: &str, rows, cut, role| {
        let name = name.to_owned();
        Place { name, rows, columns: hidden, cut, role }
    };
    let table = if tied { Role::TiedTable } else { Role::Table };
    let embedding = place("token_embd.weight", vocabulary, Cut::Vocabulary, table);
    let output = place("output.weight", vocabulary, Cut::Vocabulary, Role::Linear);
    let norm = place("output_norm.weight", 1, Cut::Whole, Role::Vector);
    let layers = (0..spec.num_layers).flat_map(move |layer| layer_places(spec, layer, has));
    [embedding, norm].into_iter().chain((!tied).then_some(output)).chain(layers)
}

/// Whether the output layer is the embedding.
pub(crate) fn is_tied(spec: &DecoderSpec, has: &dyn Fn(&str) -> bool) -> bool {
    spec.tied_output.unwrap_or_else(|| !has("output.weight"))
}

fn layer_places(spec: &DecoderSpec, layer: usize, has: &dyn Fn(&str) -> bool) -> Vec<Place> {
    let mut places = Vec::new();
    let mut add = |name: &str, (rows, columns), cut, role| {
        let name = format!("blk.{layer}.{name}");
        places.push(Place { name, rows, columns, cut, role });
    };
    let (hidden, dim) = (spec.hidden, spec.head_dim);
    let (heads, kv_heads) = (spec.num_heads * dim, spec.num_kv_heads * dim);
    let qkv = [
        ("attn_q", heads, Cut::Heads),
        ("attn_k", kv_heads, Cut::KvHeads),
        ("attn_v", kv_heads, Cut::KvHeads),
    ];
    let fused = [("attn_qkv", heads + 2 * kv_heads, Cut::Qkv)];
    for &(name, rows, cut) in if spec.fused_qkv { &fused[..] } else { &qkv } {
        add(&format!("{name}.weight"), (rows, hidden), cut, Role::Linear);
        if spec.qkv_bias {
            add(&format!("{name}.bias"), (1, rows), cut, Role::Vector);
        }
    }
    add("attn_output.weight", (hidden, heads), Cut::Heads, Role::Linear);
    let mut vector = |is_there: bool, name: &str, width| {
        if is_there {
            add(name, (1, width), Cut::Whole, Role::Vector);
        }
    };
    vector(spec.attention_output_bias, "attn_output.bias", hidden);
    vector(true, "attn_norm.weight", hidden);
    vector(true, "ffn_norm.weight", hidden);
    vector(spec.head_norms, "attn_q_norm.weight", dim);
    vector(spec.head_norms, "attn_k_norm.weight", dim);
    vector(spec.post_norms, "post_attention_norm.weight", hidden);
    vector(spec.post_norms, "post_ffw_norm.weight", hidden);
    if let Some(experts) = spec.experts.as_ref().filter(|experts| experts.layers[layer]) {
        let (count, width) = (experts.num_experts, experts.feed_forward);
        add("ffn_gate_inp.weight", (count, hidden), Cut::Whole, Role::Vector);
        let mut part = |name: &str, shape| add(name, shape, Cut::ExpertFeedForward, Role::Linear);
        match ExpertStorage::of(layer, has) {
            ExpertStorage::Stacked => {
                part("ffn_gate_exps.weight", (count * width, hidden));
                part("ffn_up_exps.weight", (count * width, hidden));
                part("ffn_down_exps.weight", (count * hidden, width));
            }
            ExpertStorage::StackedGateUp => {
                part("ffn_gate_up_exps.weight", (2 * count * width, hidden));
                part("ffn_down_exps.weight", (count * hidden, width));
            }
            ExpertStorage::Single => {
                for expert in 0..count {
                    part(&format!("ffn_gate.{expert}.weight"), (width, hidden));
                    part(&format!("ffn_up.{expert}.weight"), (width, hidden));
                    part(&format!("ffn_down.{expert}.weight"), (hidden, width));
                }
            }
        }
        return places;
    }
    let width = spec.feed_forward;
    let gate_up = [("ffn_gate", width), ("ffn_up", width)];
    let fused = [("ffn_up", 2 * width)];
    for &(name, rows) in if spec.fused_gate_up { &fused[..] } else { &gate_up } {
        add(&format!("{name}.weight"), (rows, hidden), Cut::FeedForward, Role::Linear);
        if spec.feed_forward_bias {
            add(&format!("{name}.bias"), (1, rows), Cut::FeedForward, Role::Vector);
        }
    }
    add("ffn_down.weight", (hidden, width), Cut::FeedForward, Role::Linear);
    if spec.feed_forward_bias {
        add("ffn_down.bias", (1, hidden), Cut::Whole, Role::Vector);
    }
    places
}
