//! A position in a file's bytes, with checked reads.

/// Reads little-endian values one after the other.
pub(super) struct Cursor<'a> {
    bytes: &'a [u8],
    position: usize,
}

impl<'a> Cursor<'a> {
    pub(super) fn new(bytes: &'a [u8]) -> Self {
        Self { bytes, position: 0 }
    }

    pub(super) fn position(&self) -> usize {
        self.position
    }

    pub(super) fn remaining(&self) -> usize {
        self.bytes.len() - self.position
    }

    /// The next `len` bytes.
    pub(super) fn take(&mut self, len: usize) -> Result<&'a [u8], String> {
        if len > self.remaining() {
            return Err(format!(
                "truncated: {len} bytes wanted at offset {}, {} left",
                self.position,
                self.remaining()
            ));
        }
        let bytes = &self.bytes[self.position..self.position + len];
        self.position += len;
        Ok(bytes)
    }

    fn array<const N: usize>(&mut self) -> Result<[u8; N], String> {
        let mut array = [0; N];
        array.copy_from_slice(self.take(N)?);
        Ok(array)
    }

    pub(super) fn u8(&mut self) -> Result<u8, String> {
        Ok(self.array::<1>()?[0])
    }

    pub(super) fn u16(&mut self) -> Result<u16, String> {
        Ok(u16::from_le_bytes(self.array()?))
    }

    pub(super) fn u32(&mut self) -> Result<u32, String> {
        Ok(u32::from_le_bytes(self.array()?))
    }

    pub(super) fn u64(&mut self) -> Result<u64, String> {
        Ok(u64::from_le_bytes(self.array()?))
    }

    /// A count of things that take at least `least_bytes` each: no more of them than the file has
    /// room for.
    pub(super) fn count(&mut self, what: &str, least_bytes: usize) -> Result<usize, String> {
        let count = self.u64()?;
        let room = (self.remaining() / least_bytes) as u64;
        if count > room {
            return Err(format!("it claims {count} {what}, and has room for {room}"));
        }
        Ok(count as usize)
    }

    /// A string with its length in front.
    pub(super) fn string(&mut self) -> Result<&'a str, String> {
        let len = self.count("bytes of a string", 1)?;
        let offset = self.position;
        std::str::from_utf8(self.take(len)?)
            .map_err(|_| format!("a string at offset {offset} is not UTF-8"))
    }
}
