//! What every token stands for, in bytes.

use oarlock_types::TokenId;

use crate::TextError;

/// Bytes of all tokens, one after the other, and which tokens are special.
pub(crate) struct TokenTable {
    bytes: Vec<u8>,
    /// Where each token begins in `bytes`; one entry more than there are tokens.
    offsets: Vec<u32>,
    special: Vec<bool>,
    max_token_bytes: usize,
}

impl TokenTable {
    /// An empty table with room for so many tokens.
    pub(crate) fn with_capacity(num_tokens: usize) -> Self {
        let mut offsets = Vec::with_capacity(num_tokens + 1);
        offsets.push(0);
        let special = Vec::with_capacity(num_tokens);
        Self { bytes: Vec::with_capacity(num_tokens * 8), offsets, special, max_token_bytes: 0 }
    }

    /// Adds the next token; `append` writes its bytes.
    pub(crate) fn push(
        &mut self,
        special: bool,
        append: impl FnOnce(&mut Vec<u8>) -> Result<(), TextError>,
    ) -> Result<(), TextError> {
        let start = self.bytes.len();
        append(&mut self.bytes)?;
        let end = u32::try_from(self.bytes.len()).map_err(|_| {
            TextError::InvalidVocabulary("tokens have over 4 GiB of text".to_owned())
        })?;
        self.max_token_bytes = self.max_token_bytes.max(self.bytes.len() - start);
        self.offsets.push(end);
        self.special.push(special);
        Ok(())
    }

    /// Bytes of a token; empty for an id that is not there.
    pub(crate) fn get(&self, id: TokenId) -> &[u8] {
        match (self.offsets.get(id.index()), self.offsets.get(id.index() + 1)) {
            (Some(start), Some(end)) => &self.bytes[*start as usize..*end as usize],
            _ => &[],
        }
    }

    pub(crate) fn is_special(&self, id: TokenId) -> bool {
        self.special.get(id.index()).copied().unwrap_or(false)
    }

    pub(crate) fn len(&self) -> usize {
        self.special.len()
    }

    /// Raises the length of the longest token: a text may write it longer than its bytes are.
    pub(crate) fn raise_max_token_bytes(&mut self, len: usize) {
        self.max_token_bytes = self.max_token_bytes.max(len);
    }

    /// Length of the longest token.
    pub(crate) fn max_token_bytes(&self) -> usize {
        self.max_token_bytes
    }
}
