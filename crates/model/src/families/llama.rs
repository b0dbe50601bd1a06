//! Llama 2 and 3, and what has their shape: the family that others are told apart from.

use oarlock_backend::RotaryStyle;

use super::{Family, PLAIN};
use crate::spec::WindowedLayers;

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
        if let Some(window) = keys.find_count("attention.sliding_window")? {
            spec.windowed = WindowedLayers::new(window as u32, vec![true; spec.num_layers]);
        }
        Ok(spec)
    },
    ..PLAIN
};
