//! `out = activation(gate) * up` and the soft cap, with the sampler's exponential.

use oarlock_backend::Activation;

use crate::isa::multiversion;
use crate::lanes::{LANES, Lanes, exp, load_partial, store_partial, tanh};

multiversion! {
    /// One row; `gate_up` is `[gate | up]`.
    pub(crate) fn gated_activation = gated_activation_generic(
        out: &mut [f32], gate_up: &[f32], activation: Activation,
    );
}

multiversion! {
    /// `cap * tanh(value / cap)` of each value, in place.
    pub(crate) fn soft_cap = soft_cap_generic(values: &mut [f32], cap: f32);
}

#[inline(always)]
fn soft_cap_generic<L: Lanes>(values: &mut [f32], cap: f32) {
    let (chunks, rest) = values.as_chunks_mut::<LANES>();
    let cap = L::splat(cap);
    for chunk in chunks {
        tanh(L::load(chunk).div(cap)).mul(cap).store(chunk);
    }
    store_partial(tanh(load_partial::<L>(rest, 0.0).div(cap)).mul(cap), rest);
}

#[inline(always)]
fn gated_activation_generic<L: Lanes>(out: &mut [f32], gate_up: &[f32], activation: Activation) {
    assert_eq!(gate_up.len(), 2 * out.len(), "width of gate and up");
    let (gate, up) = gate_up.split_at(out.len());
    let (outs, out_rest) = out.as_chunks_mut::<LANES>();
    let (gates, gate_rest) = gate.as_chunks::<LANES>();
    let (ups, up_rest) = up.as_chunks::<LANES>();
    for ((out, gate), up) in outs.iter_mut().zip(gates).zip(ups) {
        activate(L::load(gate), activation).mul(L::load(up)).store(out);
    }
    let rest =
        activate(load_partial::<L>(gate_rest, 0.0), activation).mul(load_partial(up_rest, 0.0));
    store_partial(rest, out_rest);
}

#[inline(always)]
fn activate<L: Lanes>(x: L, activation: Activation) -> L {
    let one = L::splat(1.0);
    match activation {
        Activation::Silu => x.div(one.add(exp(L::splat(0.0).sub(x)))),
        Activation::GeluTanh => {
            // sqrt(2 / π) (x + 0.044715 x³), Hendrycks and Gimpel 2016.
            let cube = x.mul(x).mul(x);
            let inner = cube.mul_add(L::splat(0.044_715), x).mul(L::splat(0.797_884_6));
            x.mul(L::splat(0.5)).mul(one.add(tanh(inner)))
        }
    }
}
