//! What to send, how fast, and what counts as good.

use std::fmt;
use std::str::FromStr;
use std::time::Duration;

use serde::Serialize;

use crate::random::Random;

/// Tokens of one prompt or answer at most: a limit against slips of the keyboard.
const MAX_TOKENS: u32 = 10_000_000;

/// Everything about one call of [`crate::run`].
#[derive(Clone, Debug)]
pub struct Options {
    /// The server, for example `http://127.0.0.1:8000`; a path `/v1` at its end is fine.
    pub url: String,
    /// The model to ask; `None` takes the only one that the server lists.
    pub model: Option<String>,
    /// Sent as a bearer token.
    pub api_key: Option<String>,
    /// Which API to call.
    pub endpoint: Endpoint,
    /// Requests in flight, one run for each entry. With `arrivals` these are upper limits (the time
    /// for which a request waits under one counts into its latencies), and an empty list means none.
    pub concurrency: Vec<u32>,
    /// Open loop: requests arrive by themselves, whether or not earlier ones are answered.
    pub arrivals: Option<Arrivals>,
    /// Requests per run, exactly: the last conversation may be shorter. `None` with a duration: as many as fit, else 8 per stream and 32 at least.
    pub requests: Option<u64>,
    /// No request begins later than this after the start of a run.
    pub duration: Option<Duration>,
    /// Requests before the first run that are not measured.
    pub warmup: u32,
    /// Tokens of a prompt, the shared prefix not counted.
    pub input: Length,
    /// Tokens of an answer.
    pub output: Length,
    /// Ask the server to generate exactly as many tokens as wanted, where it can.
    pub ignore_eos: bool,
    /// Tokens that the prompts of a group begin with.
    pub shared_prefix_tokens: u32,
    /// How many different shared prefixes there are.
    pub prefix_groups: u32,
    /// Requests of one conversation: each contains all earlier ones and their answers.
    pub turns: u32,
    /// Decides prompts, lengths and times of arrival.
    pub seed: u64,
    /// Sampling temperature.
    pub temperature: f64,
    /// What a good request keeps to.
    pub slo: Slo,
    /// A request that takes longer has failed.
    pub timeout: Duration,
}

impl Default for Options {
    fn default() -> Self {
        Self {
            url: "http://127.0.0.1:8000".to_owned(),
            model: None,
            api_key: None,
            endpoint: Endpoint::Completions,
            concurrency: vec![1],
            arrivals: None,
            requests: None,
            duration: None,
            warmup: 1,
            input: Length::Fixed(256),
            output: Length::Fixed(128),
            ignore_eos: true,
            shared_prefix_tokens: 0,
            prefix_groups: 1,
            turns: 1,
            seed: 0,
            temperature: 0.0,
            slo: Slo::default(),
            timeout: Duration::from_mins(10),
        }
    }
}

/// Which API is called.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Endpoint {
    /// `/v1/chat/completions`.
    Chat,
    /// `/v1/completions`.
    Completions,
}

impl Endpoint {
    pub(crate) fn path(self) -> &'static str {
        match self {
            Self::Chat => "/v1/chat/completions",
            Self::Completions => "/v1/completions",
        }
    }
}

/// An open loop.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub struct Arrivals {
    /// Arrivals per second on average; infinite: all at once.
    pub requests_per_s: f64,
    /// Shape of the gamma distribution of intervals: 1 is a Poisson process, less comes in bursts,
    /// more is even.
    pub burstiness: f64,
}

/// A distribution of lengths in tokens.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Length {
    /// Always the same.
    Fixed(u32),
    /// Every length from the first to the second, both included, equally often.
    Uniform(u32, u32),
    /// Normal with this mean and standard deviation, cut off at 1 and at twice the mean.
    Normal(u32, u32),
}

impl Length {
    pub(crate) fn sample(self, random: &mut Random) -> u32 {
        match self {
            Self::Fixed(length) => length,
            Self::Uniform(min, max) => min + random.below(u64::from(max - min) + 1) as u32,
            Self::Normal(mean, deviation) => {
                let value = f64::from(mean) + f64::from(deviation) * random.normal();
                value.round().clamp(1.0, 2.0 * f64::from(mean)) as u32
            }
        }
    }
}

impl fmt::Display for Length {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Fixed(length) => write!(f, "{length}"),
            Self::Uniform(min, max) => write!(f, "{min}..{max}"),
            Self::Normal(mean, deviation) => write!(f, "{mean}+-{deviation}"),
        }
    }
}

impl FromStr for Length {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let tokens = |text: &str| match text.trim().parse::<u32>() {
            Ok(tokens) if (1..=MAX_TOKENS).contains(&tokens) => Ok(tokens),
            _ => Err(format!("`{text}` is no number of tokens from 1 to {MAX_TOKENS}")),
        };
        if let Some((min, max)) = text.split_once("..") {
            let (min, max) = (tokens(min)?, tokens(max)?);
            return if min <= max {
                Ok(Self::Uniform(min, max))
            } else {
                Err(format!("{min} is more than {max}: write the smaller length first"))
            };
        }
        if let Some((mean, deviation)) = text.split_once("+-").or_else(|| text.split_once('±')) {
            return Ok(Self::Normal(tokens(mean)?, tokens(deviation)?));
        }
        tokens(text)
            .map(Self::Fixed)
            .map_err(|error| format!("{error}; write for example 512, 128..1024 or 512+-128"))
    }
}

/// Limits on the latencies of one request; those that are `None` do not count.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Slo {
    /// Time to the first token.
    pub ttft: Option<Duration>,
    /// Every single gap between tokens of the request.
    pub itl: Option<Duration>,
    /// The mean time per output token after the first.
    pub tpot: Option<Duration>,
    /// The whole answer.
    pub e2e: Option<Duration>,
}

impl Slo {
    /// Whether there is any limit.
    pub fn is_set(&self) -> bool {
        *self != Self::default()
    }
}

impl fmt::Display for Slo {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let limits =
            [("ttft", self.ttft), ("itl", self.itl), ("tpot", self.tpot), ("e2e", self.e2e)];
        let limits: Vec<String> = limits
            .into_iter()
            .filter_map(|(name, limit)| limit.map(|limit| format!("{name}={limit:?}")))
            .collect();
        f.write_str(&limits.join(","))
    }
}

impl FromStr for Slo {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let mut slo = Self::default();
        for part in text.split(',') {
            let Some((name, limit)) = part.split_once('=') else {
                return Err(format!("`{part}`: write for example ttft=200ms,itl=50ms,e2e=5s"));
            };
            let place = match name.trim() {
                "ttft" => &mut slo.ttft,
                "itl" => &mut slo.itl,
                "tpot" => &mut slo.tpot,
                "e2e" => &mut slo.e2e,
                other => return Err(format!("`{other}` is not one of ttft, itl, tpot and e2e")),
            };
            if place.replace(parse_duration(limit.trim())?).is_some() {
                return Err(format!("`{}` is there twice", name.trim()));
            }
        }
        Ok(slo)
    }
}

/// `250ms`, `1.5s`, `300us`, `2m`.
///
/// # Errors
/// Anything else, in one sentence.
pub fn parse_duration(text: &str) -> Result<Duration, String> {
    let units = [("ms", 1e-3), ("us", 1e-6), ("µs", 1e-6), ("s", 1.0), ("m", 60.0)];
    let parsed = units.iter().find_map(|(unit, seconds)| {
        let number: f64 = text.strip_suffix(unit)?.trim().parse().ok()?;
        Duration::try_from_secs_f64(number * seconds).ok()
    });
    parsed.filter(|duration| !duration.is_zero()).ok_or_else(|| {
        format!("`{text}` is no duration above 0: write for example 200ms, 1.5s or 2m")
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lengths_are_parsed_printed_and_kept_to() {
        let mut random = Random::new(&[5]);
        for (text, length, min, max) in [
            ("512", Length::Fixed(512), 512, 512),
            ("10..13", Length::Uniform(10, 13), 10, 13),
            ("64+-16", Length::Normal(64, 16), 1, 128),
            ("4+-400", Length::Normal(4, 400), 1, 8),
        ] {
            assert_eq!(text.parse(), Ok(length));
            assert_eq!(length.to_string(), text);
            let drawn: Vec<u32> = (0..1000).map(|_| length.sample(&mut random)).collect();
            assert!(drawn.iter().all(|tokens| (min..=max).contains(tokens)), "{text}");
        }
        assert_eq!("64±16".parse(), Ok(Length::Normal(64, 16)));
        let uniform: Vec<u32> =
            (0..1000).map(|_| Length::Uniform(10, 13).sample(&mut random)).collect();
        assert!((10..=13).all(|tokens| uniform.contains(&tokens)));
        for bad in ["", "0", "-1", "5..2", "1..", "x", "0..4", "99999999999", "4+-"] {
            assert!(bad.parse::<Length>().is_err(), "{bad}");
        }
    }

    #[test]
    fn objectives_are_parsed_and_printed() {
        let slo: Slo = "ttft=200ms, itl=50ms,e2e=1.5s".parse().expect("it is one");
        assert_eq!(slo.ttft, Some(Duration::from_millis(200)));
        assert_eq!(slo.e2e, Some(Duration::from_millis(1500)));
        assert_eq!(slo.tpot, None);
        assert_eq!(slo.to_string(), "ttft=200ms,itl=50ms,e2e=1.5s");
        for bad in ["", "ttft", "ttft=5", "x=1s", "ttft=0s", "ttft=1s,ttft=2s", "e2e=-1s"] {
            assert!(bad.parse::<Slo>().is_err(), "{bad}");
        }
    }
}
