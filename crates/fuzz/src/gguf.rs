//! A weight file: its header, the model card, the tokenizer that the card describes.

use oarlock_text::Tokenizer;

/// Longest vocabulary of which a tokenizer is built: larger ones take seconds each.
const MAX_TOKENS: usize = 4096;

/// Reads `file` as a weight file and, where that works, tokenizes a text with its vocabulary.
pub fn gguf(file: &[u8]) {
    let Ok(card) = oarlock_model::inspect(file) else { return };
    let Some(source) = &card.tokenizer else { return };
    if card.vocab_size as usize > MAX_TOKENS {
        return;
    }
    let Ok(tokenizer) = Tokenizer::new(source) else { return };
    let text = "the wheel 42 ▁ <0x41>\u{1f3a1}\n  <|end|>";
    if let Ok(ids) = tokenizer.encode(text, true) {
        let decoded = tokenizer.decode(&ids, false);
        assert!(decoded.len() <= ids.len() * tokenizer.max_token_bytes().max(3));
    }
}
