//! Logprobs of raw logits: the most likely tokens, and the score of a given one.

use oarlock_types::{RankedToken, TokenId, TokenScore};

/// Logits compared at once when looking for one that enters the best.
const BLOCK: usize = 16;

/// The `n` most likely tokens, best first (logit descending, id ascending); all of them where the
/// vocabulary is smaller, NaNs aside. `log_sum_exp` is that of the row.
#[inline]
pub fn top(logits: &[f32], n: usize, log_sum_exp: f32) -> Vec<RankedToken> {
    let n = n.min(logits.len());
    // `logprob` holds the logit until the end.
    let mut best: Vec<RankedToken> = Vec::with_capacity(n);
    if n == 0 {
        return best;
    }
    for (block, chunk) in logits.chunks(BLOCK).enumerate() {
        if best.len() == n {
            let bound = best[n - 1].logprob;
            // Counted, not searched, so that the comparison vectorizes.
            if chunk.iter().map(|&logit| u32::from(logit > bound)).sum::<u32>() == 0 {
                continue;
            }
        }
        for (i, &logit) in chunk.iter().enumerate() {
            let full = best.len() == n;
            if logit.is_nan() || full && logit <= best[n - 1].logprob {
                continue;
            }
            if full {
                best.pop();
            }
            // Ids come in ascending order, so an equal logit goes behind those already there.
            let at = best.partition_point(|ranked| ranked.logprob >= logit);
            let token = TokenId((block * BLOCK + i) as u32);
            best.insert(at, RankedToken { token, logprob: logit });
        }
    }
    for ranked in &mut best {
        ranked.logprob -= log_sum_exp;
    }
    best
}

/// The score of `token` with the `n` most likely ones. Its rank is 1 plus the number of tokens before
/// it in the order (logit descending, id ascending). `log_sum_exp` is that of the row.
///
/// # Panics
/// If the token is not in the vocabulary.
#[inline]
pub fn score(logits: &[f32], token: TokenId, n: u8, log_sum_exp: f32) -> TokenScore {
    let logit = logits[token.index()];
    let (before, after) = logits.split_at(token.index());
    let ahead = before.iter().map(|&l| u32::from(l >= logit)).sum::<u32>()
        + after.iter().map(|&l| u32::from(l > logit)).sum::<u32>();
    TokenScore {
        logprob: logit - log_sum_exp,
        rank: 1 + ahead,
        top: top(logits, n.into(), log_sum_exp),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{log_sum_exp_of_row, philox4x32_10};

    /// A row with many equal logits.
    fn row(len: u32, levels: u32) -> Vec<f32> {
        (0..len).map(|i| (philox4x32_10([i, 1, 0, 0], [9, 9])[0] % levels) as f32 * 0.25).collect()
    }

    fn sorted(logits: &[f32]) -> Vec<u32> {
        let mut ids: Vec<u32> = (0..logits.len() as u32).collect();
        ids.sort_by(|&a, &b| logits[b as usize].total_cmp(&logits[a as usize]).then(a.cmp(&b)));
        ids
    }

    #[test]
    fn top_and_rank_agree_with_a_full_sort() {
        for (len, levels) in [(1, 1), (17, 3), (1000, 40), (5000, 1_000_000)] {
            let logits = row(len, levels);
            let order = sorted(&logits);
            let lse = log_sum_exp_of_row(&logits, &mut Vec::new());
            for n in [0, 1, 5, 20, 255] {
                let got: Vec<u32> = top(&logits, n, lse).iter().map(|r| r.token.0).collect();
                assert_eq!(got, order[..n.min(order.len())]);
            }
            for (rank, &id) in order.iter().enumerate().step_by(7) {
                let scored = score(&logits, TokenId(id), 3, lse);
                assert_eq!(scored.rank as usize, rank + 1);
                assert_eq!(scored.logprob, logits[id as usize] - lse);
                assert_eq!(scored.top.len(), 3.min(logits.len()));
            }
        }
    }

    #[test]
    fn logprobs_agree_with_f64() {
        let logits = row(20_000, 100);
        let lse = log_sum_exp_of_row(&logits, &mut Vec::new());
        let exact = logits.iter().map(|&l| f64::from(l).exp()).sum::<f64>().ln();
        for ranked in top(&logits, 20, lse) {
            let want = f64::from(logits[ranked.token.index()]) - exact;
            assert!((f64::from(ranked.logprob) - want).abs() < 5e-6);
        }
    }

    #[test]
    fn masked_tokens_rank_last() {
        let logits = [f32::NEG_INFINITY, 1.0, f32::NEG_INFINITY, 2.0];
        let lse = log_sum_exp_of_row(&logits, &mut Vec::new());
        let scored = score(&logits, TokenId(2), 4, lse);
        assert_eq!((scored.rank, scored.logprob), (4, f32::NEG_INFINITY));
        assert_eq!(scored.top.iter().map(|r| r.token.0).collect::<Vec<_>>(), [3, 1, 0, 2]);
    }
}
