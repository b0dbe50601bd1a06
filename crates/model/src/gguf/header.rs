//! The header: metadata and the table of tensors, each with its checked place in the file.

use std::collections::BTreeMap;

use oarlock_backend::WeightKind;

use super::cursor::Cursor;
use super::value::{Metadata, Value};
use crate::tensors::TensorInfo;

/// Tensors have four dimensions at most.
const MAX_DIMENSIONS: u32 = 4;
/// Where tensors begin unless `general.alignment` says otherwise: multiples of this.
const DEFAULT_ALIGNMENT: u64 = 32;

/// A parsed header.
#[derive(Debug)]
pub(crate) struct Header {
    pub(crate) metadata: Metadata,
    pub(crate) tensors: TensorTable,
}

/// A file's tensors by name.
pub(crate) type TensorTable = BTreeMap<String, TensorInfo>;

/// Parses the header at the start of `bytes`, the whole file.
pub(crate) fn parse(bytes: &[u8]) -> Result<Header, String> {
    let mut cursor = Cursor::new(bytes);
    if cursor.take(4).ok() != Some(b"GGUF") {
        return Err("it does not begin with the magic bytes GGUF".to_owned());
    }
    let version = cursor.u32()?;
    if !(2..=3).contains(&version) {
        return Err(format!(
            "version {version} is not supported (2 and 3 are); big-endian files are not"
        ));
    }
    // A tensor entry has at least a name's length, dimensions, type and offset.
    let num_tensors = cursor.count("tensors", 24)?;
    let num_keys = cursor.count("metadata keys", 13)?;
    let metadata = read_metadata(&mut cursor, num_keys)?;
    let alignment = alignment(&metadata)?;
    let mut entries = Vec::new();
    for _ in 0..num_tensors {
        entries.push(Entry::read(&mut cursor)?);
    }
    let data_start = (cursor.position() as u64).next_multiple_of(alignment);
    let mut tensors = BTreeMap::new();
    for entry in entries {
        let name = entry.name.to_owned();
        let info = entry.locate(data_start, alignment, bytes.len())?;
        if tensors.insert(name.clone(), info).is_some() {
            return Err(format!("tensor {name} is listed twice"));
        }
    }
    check_places(&tensors)?;
    Ok(Header { metadata, tensors })
}

/// No two tensors share bytes: one of them would be of the other's weights, and many could make a small file a
/// large model.
fn check_places(tensors: &TensorTable) -> Result<(), String> {
    let mut places: Vec<_> = tensors.iter().map(|(name, info)| (&info.range, name)).collect();
    places.sort_by_key(|(range, _)| range.start);
    for pair in places.windows(2) {
        let [(before, first), (after, second)] = [pair[0], pair[1]];
        if after.start < before.end {
            return Err(format!("tensors {first} and {second} overlap"));
        }
    }
    Ok(())
}

fn read_metadata(cursor: &mut Cursor<'_>, num_keys: usize) -> Result<Metadata, String> {
    let mut metadata = BTreeMap::new();
    for _ in 0..num_keys {
        let key = cursor.string()?.to_owned();
        let kind = cursor.u32()?;
        let value =
            Value::read(cursor, kind, 0).map_err(|error| format!("metadata key {key}: {error}"))?;
        if metadata.insert(key.clone(), value).is_some() {
            return Err(format!("metadata key {key} is there twice"));
        }
    }
    Ok(Metadata(metadata))
}

fn alignment(metadata: &Metadata) -> Result<u64, String> {
    match metadata.get("general.alignment") {
        None => Ok(DEFAULT_ALIGNMENT),
        Some(Value::Unsigned(value)) if value.is_power_of_two() && *value <= 1 << 20 => Ok(*value),
        Some(value) => {
            Err(format!("general.alignment is {value:?}, not a power of two up to 1 MiB"))
        }
    }
}

/// One entry of the table, before its place is checked.
struct Entry<'a> {
    name: &'a str,
    dimensions: Vec<u64>,
    kind: WeightKind,
    offset: u64,
}

impl<'a> Entry<'a> {
    fn read(cursor: &mut Cursor<'a>) -> Result<Self, String> {
        let name = cursor.string()?;
        let num_dimensions = cursor.u32()?;
        if !(1..=MAX_DIMENSIONS).contains(&num_dimensions) {
            return Err(format!("tensor {name} has {num_dimensions} dimensions"));
        }
        let dimensions = (0..num_dimensions).map(|_| cursor.u64()).collect::<Result<_, _>>()?;
        let kind = weight_kind(cursor.u32()?).map_err(|error| format!("tensor {name}: {error}"))?;
        Ok(Self { name, dimensions, kind, offset: cursor.u64()? })
    }

    fn locate(
        &self,
        data_start: u64,
        alignment: u64,
        file_len: usize,
    ) -> Result<TensorInfo, String> {
        let name = self.name;
        let too_large = || format!("tensor {name}: its shape {:?} is too large", self.dimensions);
        let columns = usize::try_from(self.dimensions[0]).map_err(|_| too_large())?;
        let rows =
            self.dimensions[1..].iter().try_fold(1_u64, |product, size| product.checked_mul(*size));
        let rows = usize::try_from(rows.ok_or_else(too_large)?).map_err(|_| too_large())?;
        if rows == 0 || columns == 0 {
            return Err(format!("tensor {name}: its shape {:?} is empty", self.dimensions));
        }
        let row_bytes = self.kind.row_bytes(columns).ok_or_else(|| {
            format!(
                "tensor {name}: rows of {columns} values do not consist of whole {:?} blocks",
                self.kind
            )
        })?;
        let len = row_bytes.checked_mul(rows).ok_or_else(too_large)?;
        if !self.offset.is_multiple_of(alignment) {
            return Err(format!(
                "tensor {name}: offset {} is not aligned to {alignment}",
                self.offset
            ));
        }
        let start =
            data_start.checked_add(self.offset).and_then(|start| usize::try_from(start).ok());
        let range =
            start.and_then(|start| Some(start..start.checked_add(len)?)).ok_or_else(too_large)?;
        if range.end > file_len {
            return Err(format!(
                "tensor {name} ends at byte {}, and the file has {file_len}: it is truncated",
                range.end
            ));
        }
        Ok(TensorInfo { kind: self.kind, rows, columns, range })
    }
}

/// Types of other files, by their numbers in ggml.
const UNSUPPORTED: [(u32, &str); 9] = [
    (16, "(IQ2_XXS)"),
    (17, "(IQ2_XS)"),
    (18, "(IQ3_XXS)"),
    (19, "(IQ1_S)"),
    (21, "(IQ3_S)"),
    (22, "(IQ2_S)"),
    (28, "(F64)"),
    (29, "(IQ1_M)"),
    (39, "(MXFP4)"),
];

fn weight_kind(raw: u32) -> Result<WeightKind, String> {
    Ok(match raw {
        0 => WeightKind::F32,
        1 => WeightKind::F16,
        2 => WeightKind::Q4_0,
        3 => WeightKind::Q4_1,
        6 => WeightKind::Q5_0,
        7 => WeightKind::Q5_1,
        8 => WeightKind::Q8_0,
        10 => WeightKind::Q2K,
        11 => WeightKind::Q3K,
        12 => WeightKind::Q4K,
        13 => WeightKind::Q5K,
        14 => WeightKind::Q6K,
        20 => WeightKind::Iq4Nl,
        23 => WeightKind::Iq4Xs,
        30 => WeightKind::Bf16,
        _ => {
            let name =
                UNSUPPORTED.iter().find(|(known, _)| *known == raw).map_or("", |(_, name)| *name);
            return Err(format!(
                "type {raw} {name} is not supported (F32, F16, BF16, Q4_0, Q4_1, Q5_0, Q5_1, Q8_0, Q2_K to Q6_K, \
                 IQ4_NL and IQ4_XS are)"
            ));
        }
    })
}
