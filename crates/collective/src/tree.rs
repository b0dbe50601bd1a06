//! The one order in which ranks' values are added.

/// Ranks of the largest group.
pub(crate) const MAX_RANKS: usize = 8;

/// `sum` becomes `((r0 + r1) + (r2 + r3)) + ...`, element by element; `parts` are the ranks' values.
pub(crate) fn sum(parts: &[&[f32]], sum: &mut [f32]) {
    let len = sum.len();
    assert!(parts.iter().all(|part| part.len() == len), "parts of one length");
    match *parts {
        [a] => sum.copy_from_slice(a),
        [a, b] => {
            for (i, sum) in sum.iter_mut().enumerate() {
                *sum = a[i] + b[i];
            }
        }
        [a, b, c, d] => {
            for (i, sum) in sum.iter_mut().enumerate() {
                *sum = (a[i] + b[i]) + (c[i] + d[i]);
            }
        }
        [a, b, c, d, e, f, g, h] => {
            for (i, sum) in sum.iter_mut().enumerate() {
                *sum = ((a[i] + b[i]) + (c[i] + d[i])) + ((e[i] + f[i]) + (g[i] + h[i]));
            }
        }
        _ => unreachable!("groups have 1, 2, 4 or 8 ranks"),
    }
}

/// A group's size is one that the tree knows.
pub(crate) fn assert_size(ranks: u32) {
    assert!(matches!(ranks, 1 | 2 | 4 | 8), "a group of {ranks} ranks: 1, 2, 4 or 8");
}
