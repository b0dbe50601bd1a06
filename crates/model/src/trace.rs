//! Checksums of what a decoder computes, to find the first operation in which two runs differ.

use std::ops::Range;

use oarlock_backend::{Backend, LogitRow};

use crate::sharding::RankRanges;
use crate::spec::ExpertsSpec;

/// The checksum of one unit of one row, after one operation. Units are such that the records of all
/// ranks together are those of one rank: heads of queries, keys and values, segments of the
/// feed-forward width, eighths of the vocabulary, and whole rows elsewhere.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TraceRecord {
    /// Row of the step.
    pub row: u32,
    /// The layer; `None` before the first and after the last.
    pub layer: Option<u32>,
    /// What was computed.
    pub operation: &'static str,
    /// Which unit of the row.
    pub part: u32,
    /// FNV-1a (64 bits) over the bits of the unit's float32 values.
    pub checksum: u64,
}

/// The operations that are traced, in the order of a layer; the first comes before all layers, the last
/// two after them.
pub const TRACED_OPERATIONS: [&str; 13] = [
    "embed",
    "attention_norm",
    "qkv",
    "rotary",
    "attention",
    "attention_output",
    "feed_forward_norm",
    "routing",
    "gate_up",
    "activation",
    "down",
    "output_norm",
    "logits",
];

/// Keys, values and the second of two halves are numbered far behind what comes before them, whatever
/// its number.
const PLANE: usize = 1 << 16;

/// Hears of every operation of every step, in order.
pub trait Tracer: Send {
    /// One unit of one row.
    fn record(&mut self, record: TraceRecord);
}

/// Where a decoder's records go, if anywhere.
#[derive(Default)]
pub(crate) struct Trace {
    tracer: Option<Box<dyn Tracer>>,
    pub(crate) layer: Option<u32>,
}

impl Trace {
    pub(crate) fn set(&mut self, tracer: Box<dyn Tracer>) {
        self.tracer = Some(tracer);
    }

    pub(crate) fn is_on(&self) -> bool {
        self.tracer.is_some()
    }

    /// Whole rows.
    pub(crate) fn rows<B: Backend>(
        &mut self,
        backend: &mut B,
        operation: &'static str,
        tensor: &B::Tensor,
        width: usize,
    ) {
        self.units(backend, operation, tensor, width, &[(0, 0..width)]);
    }

    /// A row of `qkv`, or of attention outputs where `width` says that there are no keys and values.
    pub(crate) fn heads<B: Backend>(
        &mut self,
        backend: &mut B,
        operation: &'static str,
        tensor: &B::Tensor,
        (ranges, head_dim): (&RankRanges, usize),
        with_keys: bool,
    ) {
        if !self.is_on() {
            return;
        }
        let mut parts: Vec<usize> = ranges.heads.clone().collect();
        if with_keys {
            parts.extend(ranges.kv_heads.clone().map(|head| PLANE + head));
            parts.extend(ranges.kv_heads.clone().map(|head| 2 * PLANE + head));
        }
        let unit = |(at, part): (usize, &usize)| (*part as u32, at * head_dim..(at + 1) * head_dim);
        let units: Vec<_> = parts.iter().enumerate().map(unit).collect();
        self.units(backend, operation, tensor, parts.len() * head_dim, &units);
    }

    /// Rows of the feed-forward width, `copies` of it side by side, cut into segments of `unit` columns.
    pub(crate) fn segments<B: Backend>(
        &mut self,
        backend: &mut B,
        operation: &'static str,
        tensor: &B::Tensor,
        (range, unit): (&Range<usize>, usize),
        copies: usize,
    ) {
        if !self.is_on() {
            return;
        }
        let (len, first) = (range.len(), range.start / unit);
        let units: Vec<_> = (0..copies)
            .flat_map(|copy| {
                (0..len / unit).map(move |segment| {
                    let start = copy * len + segment * unit;
                    ((copy * PLANE + first + segment) as u32, start..start + unit)
                })
            })
            .collect();
        self.units(backend, operation, tensor, copies * len, &units);
    }

    /// Which experts each row takes, with which weights.
    pub(crate) fn choices<B: Backend>(
        &mut self,
        backend: &mut B,
        operation: &'static str,
        routing: &B::Routing,
        experts: Option<&ExpertsSpec>,
    ) {
        let (Some(tracer), Some(experts)) = (&mut self.tracer, experts) else { return };
        for (row, choices) in backend.read_routing(routing).chunks(experts.top_k).enumerate() {
            let values: Vec<f32> =
                choices.iter().flat_map(|(expert, weight)| [*expert as f32, *weight]).collect();
            tracer.record(TraceRecord {
                row: row as u32,
                layer: self.layer,
                operation,
                part: 0,
                checksum: checksum(&values),
            });
        }
    }

    /// A rank's logits of these rows of the step.
    pub(crate) fn logits<B: Backend>(
        &mut self,
        backend: &mut B,
        tensor: &B::Tensor,
        ranges: &RankRanges,
        rows: &[LogitRow<'_>],
    ) {
        if !self.is_on() {
            return;
        }
        let own = ranges.own_vocabulary();
        let units: Vec<_> = (0..)
            .zip(ranges.vocabulary_eighths())
            .filter(|(_, eighth)| own.start <= eighth.start && eighth.end <= own.end)
            .filter(|(_, eighth)| !eighth.is_empty())
            .map(|(part, eighth)| (part, eighth.start - own.start..eighth.end - own.start))
            .collect();
        let row = |at: usize| rows[at].row;
        self.units_of_rows(backend, "logits", tensor, own.len(), &units, &row);
    }

    fn units<B: Backend>(
        &mut self,
        backend: &mut B,
        operation: &'static str,
        tensor: &B::Tensor,
        width: usize,
        units: &[(u32, Range<usize>)],
    ) {
        self.units_of_rows(backend, operation, tensor, width, units, &|row| row as u32);
    }

    /// `row` says which row of the step one of the tensor is.
    fn units_of_rows<B: Backend>(
        &mut self,
        backend: &mut B,
        operation: &'static str,
        tensor: &B::Tensor,
        width: usize,
        units: &[(u32, Range<usize>)],
        row: &dyn Fn(usize) -> u32,
    ) {
        let Some(tracer) = &mut self.tracer else { return };
        debug_assert!(TRACED_OPERATIONS.contains(&operation), "an operation of the list");
        let values = backend.read(tensor);
        for (at, values) in values.chunks(width).enumerate() {
            for (part, range) in units {
                tracer.record(TraceRecord {
                    row: row(at),
                    layer: self.layer,
                    operation,
                    part: *part,
                    checksum: checksum(&values[range.clone()]),
                });
            }
        }
    }
}

fn checksum(values: &[f32]) -> u64 {
    let bytes = values.iter().flat_map(|value| value.to_bits().to_le_bytes());
    bytes.fold(0xcbf2_9ce4_8422_2325, |hash, byte| {
        (hash ^ u64::from(byte)).wrapping_mul(0x0000_0100_0000_01b3)
    })
}
