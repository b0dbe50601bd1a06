//! Angles in `config.json`: `rope_theta` and `rope_scaling`, or `rope_parameters`, which newer files have
//! instead, for all layers or by kind of layer.

use oarlock_backend::RotaryStyle;
use serde_json::Value;

use super::Config;
use crate::ModelError;
use crate::rope::{Rope, RopeScaling, Yarn, long_attention_factor, yarn_attention_factor};

const PARAMETERS: &str = "rope_parameters";
const SCALING: &str = "rope_scaling";

/// The angles of all layers.
pub(super) fn of_all_layers(
    config: &Config,
    head_dim: usize,
    context_length: usize,
) -> Result<Rope, ModelError> {
    of_layers(config, None, head_dim, context_length)
}

/// The angles of a kind of layers, `full_attention` or `sliding_attention`, where `rope_parameters` tells them
/// apart; those of all layers where it does not.
pub(crate) fn of_layers(
    config: &Config,
    kind: Option<&str>,
    head_dim: usize,
    context_length: usize,
) -> Result<Rope, ModelError> {
    // Where both are there, the older field is what somebody added on purpose.
    let field = if config.get(SCALING).is_some() { SCALING } else { PARAMETERS };
    let whole = config.get(field).map(|_| config.nested(field)).transpose()?;
    let parameters = match (whole, kind) {
        (Some(whole), Some(kind)) if whole.get(kind).is_some() => Some(whole.nested(kind)?),
        (whole, _) => whole,
    };
    let find = |name: &str| match &parameters {
        Some(parameters) if parameters.get(name).is_some() => parameters.find_float(name),
        _ => config.find_float(name),
    };
    // In float64, as 80 * 0.9 is 72 there.
    find("partial_rotary_factor")?;
    let partial = |config: &Config| config.get("partial_rotary_factor").and_then(Value::as_f64);
    let partial = parameters.as_ref().and_then(partial).or_else(|| partial(config)).unwrap_or(1.0);
    let rotated = (head_dim as f64 * partial) as usize;
    let scaling = match &parameters {
        None => RopeScaling::None,
        Some(parameters) => scaling(config, parameters, context_length)?,
    };
    let theta = find("rope_theta")?.unwrap_or(10_000.0);
    Ok(Rope { theta, rotated, style: RotaryStyle::Half, scaling })
}

fn scaling(
    config: &Config,
    parameters: &Config,
    context_length: usize,
) -> Result<RopeScaling, ModelError> {
    // What Phi-3 has outside, which counts more.
    let outside = config.find_positive("original_max_position_embeddings")?;
    let inside = parameters.find_positive("original_max_position_embeddings")?;
    let original = outside.or(inside).unwrap_or(context_length);
    match kind(parameters)? {
        // Bases that grow with sequences longer than the model's context, which are not served.
        "default" | "dynamic" => Ok(RopeScaling::None),
        "linear" => Ok(RopeScaling::Linear { factor: parameters.float("factor")? }),
        "llama3" => {
            let (low, high) =
                (parameters.float("low_freq_factor")?, parameters.float("high_freq_factor")?);
            if low >= high {
                let reason = format!("{high} is not greater than low_freq_factor, {low}");
                return Err(parameters.wrong("high_freq_factor", reason));
            }
            Ok(RopeScaling::Llama3 {
                factor: parameters.float("factor")?,
                low_frequency_factor: low,
                high_frequency_factor: high,
                original_context: original as f32,
            })
        }
        "yarn" => Ok(RopeScaling::Yarn(yarn(parameters, original, context_length)?)),
        "longrope" | "su" => {
            let by_lengths = context_length as f32 / original as f32;
            let factor = parameters.find_float("factor")?.unwrap_or(by_lengths);
            let attention = parameters.find_float("attention_factor")?;
            Ok(RopeScaling::LongRope {
                short: factors(parameters, "short_factor")?,
                long: factors(parameters, "long_factor")?,
                original_context: original,
                attention_factor: attention
                    .unwrap_or_else(|| long_attention_factor(factor, original)),
            })
        }
        other => {
            let reason = format!(
                "{other} is not supported (default, linear, dynamic, llama3, yarn, longrope are)"
            );
            Err(parameters.wrong("rope_type", reason))
        }
    }
}

/// The name of the scaling, which older files have as `type`.
fn kind(parameters: &Config) -> Result<&str, ModelError> {
    let name = |field: &str| match parameters.get(field) {
        None => Ok(None),
        Some(Value::String(name)) => Ok(Some(&name[..])),
        Some(other) => Err(parameters.wrong(field, format!("{other} is not a string"))),
    };
    // The newer one counts where a file that was saved anew has both.
    match name("rope_type")?.or(name("type")?) {
        Some(name) => Ok(name),
        // A factor of nothing in particular.
        None if parameters.get("factor").is_some() => {
            Err(parameters.wrong("rope_type", "missing, although there is a factor"))
        }
        None => Ok("default"),
    }
}

fn yarn(parameters: &Config, original: usize, context: usize) -> Result<Yarn, ModelError> {
    let factor = match parameters.find_float("factor")? {
        Some(factor) => factor,
        None => context as f32 / original as f32,
    };
    let scales = (parameters.find_float("mscale")?, parameters.find_float("mscale_all_dim")?);
    let attention_factor = match (parameters.find_float("attention_factor")?, scales) {
        (Some(factor), _) => factor,
        (None, (Some(scale), Some(of_all))) => {
            yarn_attention_factor(factor, scale) / yarn_attention_factor(factor, of_all)
        }
        _ => yarn_attention_factor(factor, 1.0),
    };
    Ok(Yarn {
        factor,
        original_context: original as f32,
        beta_fast: parameters.find_float("beta_fast")?.unwrap_or(32.0),
        beta_slow: parameters.find_float("beta_slow")?.unwrap_or(1.0),
        truncate: parameters.get("truncate").is_none() || parameters.flag("truncate")?,
        attention_factor,
    })
}

/// A list of factors of frequencies.
fn factors(parameters: &Config, field: &str) -> Result<Vec<f32>, ModelError> {
    let Some(Value::Array(list)) = parameters.get(field) else {
        return Err(parameters.wrong(field, "missing, or not a list of numbers"));
    };
    let number = |value: &Value| match value.as_f64() {
        Some(number) => Ok(number as f32),
        None => Err(parameters.wrong(field, format!("{value} is not a number"))),
    };
    list.iter().map(number).collect()
}
