//! Llama 2 and 3, and what has their shape: the family that others are told apart from.

use oarlock_backend::RotaryStyle;

use super::{Family, PLAIN};

pub(super) const FAMILY: Family = Family {
    name: "Llama",
    hub: &["llama"],
    gguf: &["llama"],
    from_config: |config| {
        let mut spec = config.decoder()?;
        spec.feed_forward_bias = config.flag("mlp_bias")?;
        Ok(spec)
    },
    // Files call Mistral and Mixtral so, too. Their queries and keys are stored for neighbours that are
    // rotated together.
    from_gguf: |keys| {
        let mut spec = keys.decoder()?;
        spec.rope.style = RotaryStyle::Interleaved;
        spec.experts = keys.experts(&spec, true)?;
        Ok(spec)
    },
    ..PLAIN
};
