//! Small relatives of the tiny models, against what transformers computes of them in float32 loaded as people
//! load a folder (`fixtures/relatives`, made by its `make.py`): biases, float16, partial and scaled angles,
//! windows on some layers, experts in some layers, widths that divide by little.

use oarlock_backend::{Backend, BackendLimits, OracleBackend};
use oarlock_backend_cpu::{CpuBackend, CpuConfig, Dtype};
use oarlock_model::Checkpoint;
use oarlock_testkit::fixture;

use crate::scoring::{Model, cases, limits};

const NUM_BLOCKS: usize = 16;
const LIMITS: BackendLimits = limits(NUM_BLOCKS, 32);

const MODELS: [&str; 15] = [
    "llama-biases",
    "llama-linear-f16",
    "llama-one-head-group",
    "mistral-wide-heads",
    "mixtral-windowed",
    "qwen2-yarn",
    "qwen2-windowed",
    "qwen3-biases",
    "qwen3-moe-sparse",
    "gemma2-odd-width",
    "gemma3-scaled",
    "phi3-partial-windowed",
    "phi3-longrope",
    "llama-blocks",
    "qwen3-moe-blocks",
];

/// The greatest distance from the reference's logprobs, and the greatest lead of a token that was not chosen.
fn compare<B: Backend>(name: &str, backend: B) -> (f64, f64) {
    let folder = format!("relatives/{name}");
    let checkpoint = Checkpoint::open(&fixture(&folder)).unwrap();
    let mut model = Model::load(&checkpoint, backend, NUM_BLOCKS);
    let (mut worst, mut lead) = (0.0_f64, 0.0_f64);
    for case in cases(&folder) {
        let scores = case.score(&mut model);
        worst = case.distances(&scores).into_iter().fold(worst, f64::max);
        lead = lead.max(case.lead(&scores));
    }
    (worst, lead)
}

#[test]
fn relatives_agree_with_transformers() {
    for name in MODELS {
        let (worst, lead) = compare(name, OracleBackend::new(LIMITS));
        let config = CpuConfig { threads: 2, dtype: Dtype::Float32, ..CpuConfig::default() };
        let (on_cpu, lead_on_cpu) = compare(name, CpuBackend::new(config, LIMITS).unwrap());
        eprintln!("{name}: oracle {worst:.6}, CPU {on_cpu:.6} apart at most");
        assert!(worst.max(on_cpu) <= 1e-4, "{name}: {worst}, {on_cpu}");
        assert!(lead.max(lead_on_cpu) <= 1e-4, "{name}: {lead}, {lead_on_cpu}");
    }
}
