//! Model families: each says, as data, what its decoder looks like and what its tensors are called.
//!
//! A family is one short file: what differs from a model like Llama, for `config.json` and for the metadata of
//! GGUF files. `README.md` of this crate says how to add one.

mod gemma2;
mod gemma3;
mod llama;
mod mistral;
mod mixtral;
mod phi3;
mod qwen2;
mod qwen3;
mod qwen3_moe;
#[cfg(test)]
mod tests;

use crate::ModelError;
use crate::gguf::Keys;
use crate::hugging_face::Config;
use crate::spec::DecoderSpec;

/// One family.
pub(crate) struct Family {
    /// For people.
    pub(crate) name: &'static str,
    /// Values of `model_type` in `config.json`.
    hub: &'static [&'static str],
    /// Values of `general.architecture` in GGUF files.
    gguf: &'static [&'static str],
    /// Tensors of layers that are called otherwise on the hub than Llama's: (own name, name there).
    pub(crate) names: &'static [(&'static str, &'static str)],
    /// Beginnings of names of tensors on the hub that are not the decoder's.
    pub(crate) ignored: &'static [&'static str],
    from_config: fn(&Config) -> Result<DecoderSpec, ModelError>,
    from_gguf: fn(&Keys<'_>) -> Result<DecoderSpec, ModelError>,
}

/// What a family has that says nothing else.
const PLAIN: Family = Family {
    name: "",
    hub: &[],
    gguf: &[],
    names: &[],
    ignored: &[],
    from_config: Config::decoder,
    from_gguf: |keys| keys.decoder(),
};

const FAMILIES: [&Family; 9] = [
    &llama::FAMILY,
    &mistral::FAMILY,
    &mixtral::FAMILY,
    &qwen2::FAMILY,
    &qwen3::FAMILY,
    &qwen3_moe::FAMILY,
    &gemma2::FAMILY,
    &gemma3::FAMILY,
    &phi3::FAMILY,
];

/// The family and the description of the model of a GGUF file.
pub(crate) fn of_gguf(keys: &Keys<'_>) -> Result<(&'static Family, DecoderSpec), ModelError> {
    let family = find(keys.architecture(), |family| family.gguf)?;
    let spec = (family.from_gguf)(keys)?;
    spec.check()?;
    Ok((family, spec))
}

/// The family of a folder's model.
pub(crate) fn of_model_type(model_type: &str) -> Result<&'static Family, ModelError> {
    find(model_type, |family| family.hub)
}

/// The family and the description of a folder's model.
pub(crate) fn of_config(config: &Config) -> Result<(&'static Family, DecoderSpec), ModelError> {
    let family = of_model_type(config.model_type()?)?;
    let spec = (family.from_config)(config)?;
    spec.check()?;
    Ok((family, spec))
}

fn find(
    name: &str,
    names: fn(&Family) -> &'static [&'static str],
) -> Result<&'static Family, ModelError> {
    let found = FAMILIES.into_iter().find(|family| names(family).contains(&name));
    found.ok_or_else(|| ModelError::Architecture {
        architecture: name.to_owned(),
        supported: FAMILIES.map(names).concat().join(", "),
    })
}

/// A Gemma-like spec: outputs of blocks are normed, embeddings are scaled by their width's root.
fn with_gemma(mut spec: DecoderSpec) -> DecoderSpec {
    spec.post_norms = true;
    // The original rounds it where it computes in bfloat16; buffers say whether it is here.
    spec.embedding_scale = (spec.hidden as f32).sqrt();
    spec
}
