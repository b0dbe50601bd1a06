//! Metadata values, and typed access that names the key.

use std::collections::BTreeMap;

use super::cursor::Cursor;
use crate::ModelError;

/// Arrays inside arrays at most.
const MAX_DEPTH: usize = 4;
/// Elements of an array of booleans or of 8- or 16-bit numbers at most that are kept. What this crate reads of
/// these types has one for each layer; a longer array would take 32 times the memory that it has in the file.
const MAX_SMALL: usize = 4096;

/// One metadata value. Integers of every width are kept as `i128`'s subset they came from.
#[derive(Clone, Debug, PartialEq)]
pub(crate) enum Value {
    Unsigned(u64),
    Signed(i64),
    Float(f64),
    Bool(bool),
    String(String),
    Array(Vec<Value>),
    /// An array of so many booleans or small numbers, which nothing here reads.
    Skipped(usize),
}

impl Value {
    /// Reads a value of the file's type `kind`.
    pub(super) fn read(cursor: &mut Cursor<'_>, kind: u32, depth: usize) -> Result<Self, String> {
        Ok(match kind {
            0 => Self::Unsigned(cursor.u8()?.into()),
            1 => Self::Signed(cursor.u8()?.cast_signed().into()),
            2 => Self::Unsigned(cursor.u16()?.into()),
            3 => Self::Signed(cursor.u16()?.cast_signed().into()),
            4 => Self::Unsigned(cursor.u32()?.into()),
            5 => Self::Signed(cursor.u32()?.cast_signed().into()),
            6 => Self::Float(f32::from_bits(cursor.u32()?).into()),
            7 => Self::Bool(cursor.u8()? != 0),
            8 => Self::String(cursor.string()?.to_owned()),
            9 => Self::read_array(cursor, depth)?,
            10 => Self::Unsigned(cursor.u64()?),
            11 => Self::Signed(cursor.u64()?.cast_signed()),
            12 => Self::Float(f64::from_bits(cursor.u64()?)),
            _ => return Err(format!("value type {kind} is unknown")),
        })
    }

    fn read_array(cursor: &mut Cursor<'_>, depth: usize) -> Result<Self, String> {
        if depth == MAX_DEPTH {
            return Err(format!("arrays are nested more than {MAX_DEPTH} deep"));
        }
        let kind = cursor.u32()?;
        let least_bytes = match kind {
            0 | 1 | 7 => 1,
            2 | 3 => 2,
            4..=6 => 4,
            _ => 8,
        };
        let count = cursor.count("array elements", least_bytes)?;
        if least_bytes < 4 && count > MAX_SMALL {
            cursor.take(count * least_bytes)?;
            return Ok(Self::Skipped(count));
        }
        // Arrays inside of an array may each claim all that is left of the file, so that only what is read may
        // take memory; other elements have their bytes.
        let mut elements = if kind == 9 { Vec::new() } else { Vec::with_capacity(count) };
        for _ in 0..count {
            elements.push(Self::read(cursor, kind, depth + 1)?);
        }
        Ok(Self::Array(elements))
    }
}

/// All metadata by key.
#[derive(Clone, Debug, Default, PartialEq)]
pub(crate) struct Metadata(pub(super) BTreeMap<String, Value>);

impl Metadata {
    pub(crate) fn get(&self, key: &str) -> Option<&Value> {
        self.0.get(key)
    }

    fn required(&self, key: &str) -> Result<&Value, ModelError> {
        self.get(key).ok_or_else(|| ModelError::metadata(key, "missing"))
    }

    /// A non-negative integer that fits 32 bits, if the key is there.
    pub(crate) fn find_u32(&self, key: &str) -> Result<Option<u32>, ModelError> {
        let Some(value) = self.get(key) else { return Ok(None) };
        let number = match value {
            Value::Unsigned(number) => u32::try_from(*number).ok(),
            Value::Signed(number) => u32::try_from(*number).ok(),
            _ => None,
        };
        let number = number.ok_or_else(|| ModelError::metadata(key, "not a 32-bit count"))?;
        Ok(Some(number))
    }

    /// A non-negative integer that fits 32 bits.
    pub(crate) fn u32(&self, key: &str) -> Result<u32, ModelError> {
        self.required(key)?;
        self.find_u32(key)?.ok_or_else(|| ModelError::metadata(key, "missing"))
    }

    /// A positive count.
    pub(crate) fn positive(&self, key: &str) -> Result<usize, ModelError> {
        match self.u32(key)? {
            0 => Err(ModelError::metadata(key, "must not be 0")),
            count => Ok(count as usize),
        }
    }

    /// A finite float, if the key is there.
    pub(crate) fn find_f32(&self, key: &str) -> Result<Option<f32>, ModelError> {
        match self.get(key) {
            None => Ok(None),
            Some(Value::Float(number)) if (*number as f32).is_finite() => Ok(Some(*number as f32)),
            Some(_) => Err(ModelError::metadata(key, "not a finite float")),
        }
    }

    /// A boolean, if the key is there.
    pub(crate) fn find_bool(&self, key: &str) -> Result<Option<bool>, ModelError> {
        match self.get(key) {
            None => Ok(None),
            Some(Value::Bool(value)) => Ok(Some(*value)),
            Some(_) => Err(ModelError::metadata(key, "not a boolean")),
        }
    }

    /// A string, if the key is there.
    pub(crate) fn find_str(&self, key: &str) -> Result<Option<&str>, ModelError> {
        match self.get(key) {
            None => Ok(None),
            Some(Value::String(value)) => Ok(Some(value)),
            Some(_) => Err(ModelError::metadata(key, "not a string")),
        }
    }

    /// A string.
    pub(crate) fn str(&self, key: &str) -> Result<&str, ModelError> {
        self.find_str(key)?.ok_or_else(|| ModelError::metadata(key, "missing"))
    }

    /// An array, if the key is there.
    pub(crate) fn find_array(&self, key: &str) -> Result<Option<&[Value]>, ModelError> {
        match self.get(key) {
            None => Ok(None),
            Some(Value::Array(elements)) => Ok(Some(elements)),
            Some(_) => Err(ModelError::metadata(key, "not an array")),
        }
    }

    /// An array of strings.
    pub(crate) fn strings(&self, key: &str) -> Result<Vec<String>, ModelError> {
        let elements = self.find_array(key)?.ok_or_else(|| ModelError::metadata(key, "missing"))?;
        let string = |value: &Value| match value {
            Value::String(text) => Ok(text.clone()),
            _ => Err(ModelError::metadata(key, "not an array of strings")),
        };
        elements.iter().map(string).collect()
    }
}
