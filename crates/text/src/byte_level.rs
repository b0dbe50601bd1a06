//! The byte-level alphabet: one printable character per byte, as GPT-2 introduced it.
//!
//! Printable Latin-1 bytes stand for themselves; the other 68 are mapped to U+0100 and up, in order.

/// Whether `byte` stands for itself.
const fn is_printable(byte: u8) -> bool {
    matches!(byte, 0x21..=0x7e | 0xa1..=0xac | 0xae..=0xff)
}

/// Byte of each character below U+0144; `None` where the alphabet has no such character.
const BYTE_OF_CHAR: [Option<u8>; 0x144] = {
    let mut table = [None; 0x144];
    let mut shifted = 0x100;
    let mut byte = 0;
    while byte < 256 {
        if is_printable(byte as u8) {
            table[byte] = Some(byte as u8);
        } else {
            table[shifted] = Some(byte as u8);
            shifted += 1;
        }
        byte += 1;
    }
    table
};

/// The byte that `character` stands for.
pub(crate) fn byte_of(character: char) -> Option<u8> {
    BYTE_OF_CHAR.get(character as usize).copied().flatten()
}

/// The characters of all bytes, by byte.
pub(crate) fn alphabet() -> [char; 256] {
    let mut characters = ['\0'; 256];
    for (code, byte) in (0_u32..).zip(BYTE_OF_CHAR) {
        if let (Some(byte), Some(character)) = (byte, char::from_u32(code)) {
            characters[usize::from(byte)] = character;
        }
    }
    characters
}

/// Appends the bytes of a token written in the alphabet. A token with a character outside of it
/// (an added token in plain text) stands for its own UTF-8.
pub(crate) fn append_bytes(token: &str, bytes: &mut Vec<u8>) {
    let start = bytes.len();
    for character in token.chars() {
        let Some(byte) = byte_of(character) else {
            bytes.truncate(start);
            bytes.extend_from_slice(token.as_bytes());
            return;
        };
        bytes.push(byte);
    }
}

/// Whether `byte` can occur in UTF-8 text.
pub(crate) fn occurs_in_utf8(byte: u8) -> bool {
    !matches!(byte, 0xc0 | 0xc1 | 0xf5..=0xff)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_byte_has_its_own_character() {
        let characters = alphabet();
        for (byte, character) in characters.iter().enumerate() {
            assert_eq!(byte_of(*character), Some(byte as u8));
        }
        assert_eq!(characters[b' ' as usize], 'Ġ');
        assert_eq!(characters[b'\n' as usize], 'Ċ');
        assert_eq!(characters[0xad], 'Ń');
        assert_eq!(byte_of('日'), None);
    }

    #[test]
    fn plain_text_stands_for_itself() {
        let mut bytes = Vec::new();
        append_bytes("Ġa", &mut bytes);
        append_bytes("<｜end｜>", &mut bytes);
        assert_eq!(bytes, " a<｜end｜>".as_bytes());
    }
}
