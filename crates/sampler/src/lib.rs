//! Logits and a seed to a token; the oracle for every other sampler.
