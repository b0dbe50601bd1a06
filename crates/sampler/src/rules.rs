//! Changes to a row of logits before a token is drawn from it: masks, biases, penalties.

use oarlock_types::{LogitRules, TokenId};

/// The tokens that stand before the one to be drawn.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct History<'a> {
    /// Prompt and answer so far.
    pub tokens: &'a [TokenId],
    /// How many of `tokens` are prompt.
    pub num_prompt: usize,
}

impl<'a> History<'a> {
    /// The answer so far.
    #[must_use]
    pub fn generated(&self) -> &'a [TokenId] {
        &self.tokens[self.num_prompt.min(self.tokens.len())..]
    }
}

/// Memory that rules reuse from row to row.
#[derive(Debug, Default)]
pub struct RulesScratch {
    row: Vec<f32>,
    /// By token: 1 plus how often it was generated, 0 if it did not occur. All 0 between rows.
    seen: Vec<u32>,
}

impl RulesScratch {
    /// Makes room for rows of up to `vocabulary` logits.
    pub fn reserve(&mut self, vocabulary: usize) {
        self.row.reserve(vocabulary);
        self.seen.resize(self.seen.len().max(vocabulary), 0);
    }

    /// The row as `rules` change it, each rule in the order of [`LogitRules`]' fields. A token that
    /// a mask excludes has negative infinity, whatever comes later. Tokens outside the row are ignored.
    pub fn apply(
        &mut self,
        logits: &[f32],
        rules: &LogitRules,
        history: History<'_>,
    ) -> &mut [f32] {
        self.row.clear();
        if rules.allowed.is_empty() {
            self.row.extend_from_slice(logits);
        } else {
            self.row.resize(logits.len(), f32::NEG_INFINITY);
            for token in &rules.allowed {
                if let Some(logit) = logits.get(token.index()) {
                    self.row[token.index()] = *logit;
                }
            }
        }
        let generated = history.generated();
        for word in &rules.bad_words {
            if let Some((last, before)) = word.split_last()
                && generated.ends_with(before)
            {
                mask(&mut self.row, *last);
            }
        }
        if generated.len() < rules.min_tokens as usize {
            rules.min_tokens_banned.iter().for_each(|token| mask(&mut self.row, *token));
        }
        for (token, bias) in &rules.bias {
            if let Some(logit) = self.row.get_mut(token.index()) {
                *logit += bias;
            }
        }
        self.penalize(rules, history);
        &mut self.row
    }

    /// Penalties touch only tokens that occur, so their cost is that of the history.
    fn penalize(&mut self, rules: &LogitRules, history: History<'_>) {
        let repetition = rules.repetition_penalty;
        let by_count = rules.frequency_penalty != 0.0 || rules.presence_penalty != 0.0;
        if repetition == 1.0 && !by_count {
            return;
        }
        let Self { row, seen } = self;
        if seen.len() < row.len() {
            seen.resize(row.len(), 0);
        }
        let occurring = if repetition == 1.0 { history.generated() } else { history.tokens };
        for token in occurring {
            if let Some(logit) = row.get_mut(token.index())
                && std::mem::replace(&mut seen[token.index()], 1) == 0
                && repetition != 1.0
            {
                *logit = if *logit > 0.0 { *logit / repetition } else { *logit * repetition };
            }
        }
        if by_count {
            for token in history.generated().iter().filter(|token| token.index() < row.len()) {
                seen[token.index()] += 1;
            }
        }
        for token in occurring {
            let Some(logit) = row.get_mut(token.index()) else { continue };
            let count = std::mem::take(&mut seen[token.index()]);
            if count > 1 {
                *logit -= rules.frequency_penalty * (count - 1) as f32;
                *logit -= rules.presence_penalty;
            }
        }
    }
}

fn mask(row: &mut [f32], token: TokenId) {
    if let Some(logit) = row.get_mut(token.index()) {
        *logit = f32::NEG_INFINITY;
    }
}

#[cfg(test)]
mod tests {
    use proptest::collection::{btree_set, vec};
    use proptest::prelude::*;

    use super::*;

    const VOCABULARY: u32 = 12;

    /// Every rule by its definition, one token at a time.
    fn naive(logits: &[f32], rules: &LogitRules, tokens: &[u32], num_prompt: usize) -> Vec<f32> {
        let generated = &tokens[num_prompt..];
        (0..logits.len() as u32)
            .map(|id| {
                let mut logit = logits[id as usize];
                let allowed =
                    rules.allowed.is_empty() || rules.allowed.iter().any(|token| token.0 == id);
                let completes_bad_word = rules.bad_words.iter().any(|word| {
                    let before = word.len() - 1;
                    word[before].0 == id
                        && generated.len() >= before
                        && generated[generated.len() - before..]
                            .iter()
                            .zip(word)
                            .all(|(have, want)| *have == want.0)
                });
                let too_early = generated.len() < rules.min_tokens as usize
                    && rules.min_tokens_banned.iter().any(|token| token.0 == id);
                if !allowed || completes_bad_word || too_early {
                    return f32::NEG_INFINITY;
                }
                for (token, bias) in &rules.bias {
                    if token.0 == id {
                        logit += bias;
                    }
                }
                if tokens.contains(&id) && rules.repetition_penalty != 1.0 {
                    logit = if logit > 0.0 {
                        logit / rules.repetition_penalty
                    } else {
                        logit * rules.repetition_penalty
                    };
                }
                let count = generated.iter().filter(|token| **token == id).count();
                logit -= rules.frequency_penalty * count as f32;
                if count > 0 { logit - rules.presence_penalty } else { logit }
            })
            .collect()
    }

    fn token() -> impl Strategy<Value = TokenId> {
        // Now and then a token that the row does not have.
        (0..VOCABULARY + 2).prop_map(TokenId)
    }

    fn rules() -> impl Strategy<Value = LogitRules> {
        let penalty = || prop_oneof![Just(0.0_f32), -2.0_f32..2.0];
        (
            btree_set(token(), 0..6),
            vec(vec(token(), 1..4), 0..4),
            0_u32..6,
            btree_set(token(), 0..3),
            proptest::collection::btree_map(token(), -100.0_f32..100.0, 0..5),
            prop_oneof![Just(1.0_f32), 0.1_f32..2.0],
            penalty(),
            penalty(),
        )
            .prop_map(
                |(allowed, bad_words, min_tokens, banned, bias, repetition, f, p)| LogitRules {
                    allowed: allowed.into_iter().collect(),
                    bad_words,
                    min_tokens,
                    min_tokens_banned: banned.into_iter().collect(),
                    bias: bias.into_iter().collect(),
                    repetition_penalty: repetition,
                    frequency_penalty: f,
                    presence_penalty: p,
                },
            )
    }

    proptest! {
        #[test]
        fn rules_follow_their_definitions(
            rows in vec((vec(-5.0_f32..5.0, VOCABULARY as usize), vec(token(), 0..24), 0_usize..24), 1..4),
            rules in rules(),
        ) {
            // One scratch for all rows: nothing may be left over from the row before.
            let mut scratch = RulesScratch::default();
            for (logits, tokens, num_prompt) in &rows {
                let num_prompt = (*num_prompt).min(tokens.len());
                let got = scratch.apply(logits, &rules, History { tokens, num_prompt }).to_vec();
                let ids: Vec<u32> = tokens.iter().map(|token| token.0).collect();
                let want = naive(logits, &rules, &ids, num_prompt);
                let bits = |row: &[f32]| row.iter().map(|x| (x + 0.0).to_bits()).collect::<Vec<_>>();
                prop_assert_eq!(bits(&got), bits(&want), "{:?} {:?}", got, want);
            }
        }
    }

    #[test]
    fn neutral_rules_change_nothing() {
        let row = [1.0, -2.0, 0.5];
        let tokens = [TokenId(0), TokenId(1), TokenId(1)];
        let history = History { tokens: &tokens, num_prompt: 1 };
        let mut scratch = RulesScratch::default();
        assert_eq!(scratch.apply(&row, &LogitRules::default(), history), row);
    }
}
