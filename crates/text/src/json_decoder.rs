//! How a `tokenizer.json` writes its tokens, as far as its decoder tells.

use tokenizers::decoders::DecoderWrapper;
use tokenizers::normalizers::replace::Replace;
use tokenizers::pre_tokenizers::metaspace::PrependScheme;

use crate::TextError;
use crate::sentence_piece::SPACE_MARK;

/// How tokens are written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Writing {
    /// A character of the byte-level alphabet for each byte.
    ByteLevel,
    /// SentencePiece's way: `▁` is a space, and `<0x0A>` a byte.
    Marks,
}

/// What a text that begins with a token has of it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum TextStart {
    /// All of its bytes.
    Whole,
    /// All but a space at the beginning, which encoding has put there.
    WithoutSpace,
    /// All but its marks, wherever they are in it: the rule of the `Metaspace` decoder.
    WithoutMarks,
}

/// Understands a decoder.
///
/// # Errors
/// A decoder that is not one of those that byte-level and SentencePiece-like tokenizers have.
pub(crate) fn understand(
    decoder: Option<&DecoderWrapper>,
) -> Result<(Writing, TextStart), TextError> {
    use DecoderWrapper::{ByteFallback, ByteLevel, Fuse, Metaspace, Sequence, Strip};

    let Some(decoder) = decoder else {
        return Err(unsupported("it has no decoder"));
    };
    let steps = match decoder {
        Sequence(sequence) => sequence.get_decoders(),
        one => std::slice::from_ref(one),
    };
    match steps {
        [ByteLevel(_)] => Ok((Writing::ByteLevel, TextStart::Whole)),
        [Metaspace(metaspace)] | [ByteFallback(_), Metaspace(metaspace)]
            if metaspace.get_replacement() == SPACE_MARK =>
        {
            let start = match metaspace.get_prepend_scheme() {
                PrependScheme::Never => TextStart::Whole,
                PrependScheme::First | PrependScheme::Always => TextStart::WithoutMarks,
            };
            Ok((Writing::Marks, start))
        }
        [DecoderWrapper::Replace(replace), ByteFallback(_), Fuse(_)] if is_of_marks(replace) => {
            Ok((Writing::Marks, TextStart::Whole))
        }
        [DecoderWrapper::Replace(replace), ByteFallback(_), Fuse(_), Strip(strip)]
            if is_of_marks(replace) && (strip.content, strip.start, strip.stop) == (' ', 1, 0) =>
        {
            Ok((Writing::Marks, TextStart::WithoutSpace))
        }
        _ => {
            let steps = steps.iter().map(name).collect::<Vec<_>>().join(", ");
            Err(match decoder {
                Sequence(_) => unsupported(&format!("its decoder is a Sequence of {steps}")),
                _ => unsupported(&format!("its decoder is {steps}")),
            })
        }
    }
}

/// An error that says what can be done instead.
pub(crate) fn unsupported(what: &str) -> TextError {
    TextError::InvalidJson(format!(
        "{what}, which is not supported (byte-level BPE and SentencePiece's BPE are); prompts of \
         token ids work"
    ))
}

/// Whether the step makes a space of each mark.
fn is_of_marks(replace: &Replace) -> bool {
    Replace::new(SPACE_MARK.to_string(), " ").is_ok_and(|marks| *replace == marks)
}

/// The decoder's type, as the file names it.
fn name(decoder: &DecoderWrapper) -> &'static str {
    match decoder {
        DecoderWrapper::BPE(_) => "BPEDecoder",
        DecoderWrapper::ByteLevel(_) => "ByteLevel",
        DecoderWrapper::WordPiece(_) => "WordPiece",
        DecoderWrapper::Metaspace(_) => "Metaspace",
        DecoderWrapper::CTC(_) => "CTC",
        DecoderWrapper::Sequence(_) => "Sequence",
        DecoderWrapper::Replace(_) => "Replace",
        DecoderWrapper::Fuse(_) => "Fuse",
        DecoderWrapper::Strip(_) => "Strip",
        DecoderWrapper::ByteFallback(_) => "ByteFallback",
    }
}
