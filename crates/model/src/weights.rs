//! Tensors by name, with the checks that every family wants: right shape, right type, none left over.

use std::cell::RefCell;
use std::collections::BTreeSet;
use std::ops::Range;

use half::{bf16, f16};
use oarlock_backend::{Backend, InnerSplit, WeightKind, WeightView};
use oarlock_types::LoadProgress;

use crate::ModelError;
use crate::checkpoint::Checkpoint;

/// A tensor and the range of its rows that this rank takes.
#[derive(Clone, Debug)]
pub(crate) struct Part {
    name: String,
    rows: usize,
    own: Range<usize>,
}

impl Part {
    /// All of `rows` rows.
    pub(crate) fn whole(name: String, rows: usize) -> Self {
        Self { name, rows, own: 0..rows }
    }

    /// A range of `rows` rows.
    pub(crate) fn range(name: String, rows: usize, own: Range<usize>) -> Self {
        Self { name, rows, own }
    }
}

/// Takes tensors out of a checkpoint, packs them, and drops their pages.
pub(crate) struct WeightLoader<'a> {
    checkpoint: &'a Checkpoint,
    taken: RefCell<BTreeSet<String>>,
    progress: &'a mut dyn FnMut(LoadProgress),
    so_far: LoadProgress,
}

impl<'a> WeightLoader<'a> {
    /// `total_bytes` are those that the rank will take.
    pub(crate) fn new(
        checkpoint: &'a Checkpoint,
        total_bytes: u64,
        progress: &'a mut dyn FnMut(LoadProgress),
    ) -> Self {
        let so_far = LoadProgress { loaded_bytes: 0, total_bytes };
        Self { checkpoint, taken: RefCell::default(), progress, so_far }
    }

    /// Whether the checkpoint has a tensor of this name.
    pub(crate) fn has(&self, name: &str) -> bool {
        self.checkpoint.tensor(name).is_some()
    }

    /// A tensor that may be there, and is not wanted.
    pub(crate) fn ignore(&self, name: &str) {
        self.taken.borrow_mut().insert(name.to_owned());
    }

    /// How a tensor is stored.
    pub(crate) fn kind(&self, part: &Part) -> Result<WeightKind, ModelError> {
        match self.checkpoint.tensor(&part.name) {
            Some(tensor) => Ok(tensor.info.kind),
            None => Err(self.missing(&part.name)),
        }
    }

    fn missing(&self, name: &str) -> ModelError {
        ModelError::tensor(self.checkpoint.name_in_file(name), "missing")
    }

    /// The tensor, which must have this shape.
    fn view(&self, name: &str, rows: usize, columns: usize) -> Result<WeightView<'a>, ModelError> {
        let tensor = self.checkpoint.tensor(name).ok_or_else(|| self.missing(name))?;
        let info = tensor.info;
        if (info.rows, info.columns) != (rows, columns) {
            let reason =
                format!("shape is {}x{}, expected {rows}x{columns}", info.rows, info.columns);
            return Err(ModelError::tensor(tensor.name, reason));
        }
        self.taken.borrow_mut().insert(name.to_owned());
        Ok(WeightView::whole(tensor.name, info.kind, rows, columns, tensor.data))
    }

    /// A linear layer made of rows of tensors with a common inner width.
    pub(crate) fn linear<B: Backend>(
        &mut self,
        backend: &mut B,
        parts: &[Part],
        columns: usize,
    ) -> Result<B::Weight, ModelError> {
        let view = |part: &Part| {
            let whole = self.view(&part.name, part.rows, columns)?;
            Ok(whole.with_rows(part.own.clone()))
        };
        let views: Vec<_> = parts.iter().map(view).collect::<Result<_, ModelError>>()?;
        let weight = backend.pack_linear(&views, InnerSplit::WHOLE)?;
        for (part, view) in parts.iter().zip(&views) {
            self.done(&part.name, view.data.len() as u64);
        }
        Ok(weight)
    }

    /// A row-parallel layer: the rank's range of `columns`, in its own segments.
    pub(crate) fn row_parallel<B: Backend>(
        &mut self,
        backend: &mut B,
        part: &Part,
        (columns, own): (usize, Range<usize>),
        split: InnerSplit,
    ) -> Result<B::Weight, ModelError> {
        let view = self.view(&part.name, part.rows, columns)?;
        let bytes = view.data.len() * own.len() / columns;
        let weight = backend.pack_linear(&[view.with_columns(own)], split)?;
        self.done(&part.name, bytes as u64);
        Ok(weight)
    }

    /// Rows of an embedding table.
    pub(crate) fn table<B: Backend>(
        &mut self,
        backend: &mut B,
        part: &Part,
        columns: usize,
    ) -> Result<B::Table, ModelError> {
        let view = self.view(&part.name, part.rows, columns)?.with_rows(part.own.clone());
        let table = backend.pack_table(&view, part.own.start as u32)?;
        self.done(&part.name, view.data.len() as u64);
        Ok(table)
    }

    /// A vector of floats, from ranges of several tensors one after the other.
    pub(crate) fn vector<B: Backend>(
        &mut self,
        backend: &mut B,
        parts: &[Part],
    ) -> Result<B::Vector, ModelError> {
        let mut values = Vec::new();
        for part in parts {
            let view = self.view(&part.name, 1, part.rows)?;
            let mut all = Vec::new();
            append_floats(&view, &mut all)?;
            values.extend_from_slice(&all[part.own.clone()]);
            let bytes = view.data.len() * part.own.len() / part.rows;
            self.done(&part.name, bytes as u64);
        }
        Ok(backend.vector(&values)?)
    }

    fn done(&mut self, name: &str, bytes: u64) {
        self.checkpoint.release(name);
        // A tied embedding is taken twice and counts once.
        let loaded = self.so_far.loaded_bytes + bytes;
        self.so_far.loaded_bytes = loaded.min(self.so_far.total_bytes);
        (self.progress)(self.so_far);
    }

    /// Every tensor was wanted, or the model is not what it says it is.
    pub(crate) fn finish(&self) -> Result<(), ModelError> {
        let taken = self.taken.borrow();
        match self.checkpoint.tensor_names().find(|name| !taken.contains(*name)) {
            None => Ok(()),
            Some(name) => Err(ModelError::tensor(
                self.checkpoint.name_in_file(name),
                "the architecture has no such tensor; the file is of another model or a newer one",
            )),
        }
    }
}

fn append_floats(view: &WeightView<'_>, out: &mut Vec<f32>) -> Result<(), ModelError> {
    let pairs = || view.data.chunks_exact(2).map(|pair| [pair[0], pair[1]]);
    match view.kind {
        WeightKind::F32 => {
            out.extend(
                view.data.chunks_exact(4).map(|b| f32::from_le_bytes([b[0], b[1], b[2], b[3]])),
            );
        }
        WeightKind::F16 => out.extend(pairs().map(|pair| f16::from_le_bytes(pair).to_f32())),
        WeightKind::Bf16 => out.extend(pairs().map(|pair| bf16::from_le_bytes(pair).to_f32())),
        kind => return Err(ModelError::tensor(view.name, format!("is {kind:?}, expected floats"))),
    }
    Ok(())
}
