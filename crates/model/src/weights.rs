//! Tensors by name, with the checks that every family wants: right shape, right type, none left over.

use std::cell::RefCell;
use std::collections::BTreeSet;

use half::{bf16, f16};
use oarlock_backend::{Backend, InnerSplit, WeightKind, WeightView};
use oarlock_types::LoadProgress;

use crate::ModelError;
use crate::checkpoint::Checkpoint;

/// Takes tensors out of a checkpoint, packs them, and drops their pages.
pub(crate) struct WeightLoader<'a> {
    checkpoint: &'a Checkpoint,
    taken: RefCell<BTreeSet<String>>,
    progress: &'a mut dyn FnMut(LoadProgress),
    so_far: LoadProgress,
}

impl<'a> WeightLoader<'a> {
    pub(crate) fn new(
        checkpoint: &'a Checkpoint,
        progress: &'a mut dyn FnMut(LoadProgress),
    ) -> Self {
        let total_bytes = checkpoint.tensor_bytes();
        let so_far = LoadProgress { loaded_bytes: 0, total_bytes };
        Self { checkpoint, taken: RefCell::default(), progress, so_far }
    }

    /// Whether the checkpoint has a tensor of this name.
    pub(crate) fn has(&self, name: &str) -> bool {
        self.checkpoint.tensor(name).is_some()
    }

    /// The tensor, which must have this shape.
    fn view<'n>(
        &self,
        name: &'n str,
        rows: usize,
        columns: usize,
    ) -> Result<WeightView<'n>, ModelError>
    where
        'a: 'n,
    {
        let (info, data) =
            self.checkpoint.tensor(name).ok_or_else(|| ModelError::tensor(name, "missing"))?;
        if (info.rows, info.columns) != (rows, columns) {
            let reason =
                format!("shape is {}x{}, expected {rows}x{columns}", info.rows, info.columns);
            return Err(ModelError::tensor(name, reason));
        }
        self.taken.borrow_mut().insert(name.to_owned());
        Ok(WeightView::whole(name, info.kind, rows, columns, data))
    }

    /// A linear layer made of tensors `(name, outputs)` with a common inner width.
    pub(crate) fn linear<B: Backend>(
        &mut self,
        backend: &mut B,
        parts: &[(&str, usize)],
        columns: usize,
        split: impl Fn(WeightKind) -> InnerSplit,
    ) -> Result<B::Weight, ModelError> {
        let views: Vec<_> = parts
            .iter()
            .map(|(name, rows)| self.view(name, *rows, columns))
            .collect::<Result<_, _>>()?;
        let weight = backend.pack_linear(&views, split(views[0].kind))?;
        for view in &views {
            self.done(view.name);
        }
        Ok(weight)
    }

    /// An embedding table.
    pub(crate) fn table<B: Backend>(
        &mut self,
        backend: &mut B,
        name: &str,
        rows: usize,
        columns: usize,
    ) -> Result<B::Table, ModelError> {
        let view = self.view(name, rows, columns)?;
        let table = backend.pack_table(&view, 0)?;
        self.done(name);
        Ok(table)
    }

    /// A vector of floats, from several tensors `(name, length)` one after the other.
    pub(crate) fn vector<B: Backend>(
        &mut self,
        backend: &mut B,
        parts: &[(&str, usize)],
    ) -> Result<B::Vector, ModelError> {
        let mut values = Vec::new();
        for (name, len) in parts {
            let view = self.view(name, 1, *len)?;
            append_floats(&view, &mut values)?;
            self.done(name);
        }
        Ok(backend.vector(&values)?)
    }

    fn done(&mut self, name: &str) {
        self.so_far.loaded_bytes += self.checkpoint.release(name);
        (self.progress)(self.so_far);
    }

    /// Every tensor was wanted, or the model is not what it says it is.
    pub(crate) fn finish(&self) -> Result<(), ModelError> {
        let taken = self.taken.borrow();
        match self.checkpoint.tensor_names().find(|name| !taken.contains(*name)) {
            None => Ok(()),
            Some(name) => Err(ModelError::tensor(
                name,
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
