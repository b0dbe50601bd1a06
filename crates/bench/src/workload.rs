//! What is sent: conversations of random words or token ids, a function of the seed and their number.

use std::sync::Arc;

use crate::options::{Endpoint, Length, Options};
use crate::random::Random;
use crate::words;

/// Salts of the streams of random numbers, so that none shares numbers with another.
const LENGTHS: u64 = 1;
const CONTENT: u64 = 2;
const PREFIX: u64 = 3;
const SAMPLING: u64 = 4;

/// How tokens become a prompt on this server.
#[derive(Clone, Debug, PartialEq)]
pub(crate) enum Material {
    /// Prompts are arrays of these token ids: lengths are exact.
    Tokens(Arc<[u32]>),
    /// Prompts are words.
    Words {
        /// Tokens that a word takes on average.
        tokens_per_word: f64,
        /// Tokens of a prompt without words: the chat template, a beginning of sequence.
        overhead: f64,
    },
}

/// A piece of a prompt.
#[derive(Clone, Debug, PartialEq)]
pub(crate) enum Piece {
    Text(String),
    Tokens(Vec<u32>),
}

/// One request of a conversation.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Turn {
    /// What the user says now.
    pub(crate) piece: Piece,
    /// Tokens of the answer.
    pub(crate) output_tokens: u32,
    /// The sampler's seed.
    pub(crate) seed: u64,
}

/// Makes conversations.
#[derive(Clone, Debug)]
pub(crate) struct Workload {
    material: Material,
    input: Length,
    output: Length,
    shared_prefix_tokens: u32,
    prefix_groups: u64,
    turns: u32,
    seed: u64,
}

impl Workload {
    pub(crate) fn new(options: &Options, material: Material) -> Self {
        Self {
            material,
            input: options.input,
            output: options.output,
            shared_prefix_tokens: options.shared_prefix_tokens,
            prefix_groups: u64::from(options.prefix_groups.max(1)),
            turns: options.turns.max(1),
            seed: options.seed,
        }
    }

    /// Whether prompts can be token ids: a conversation needs the text of the answers.
    pub(crate) fn can_use_tokens(options: &Options) -> bool {
        options.endpoint == Endpoint::Completions && options.turns <= 1
    }

    /// Conversation `index` of run `run`. Runs differ, so that a second one does not find the
    /// prompts of the first in the server's prefix cache; shared prefixes are the same in all runs.
    pub(crate) fn conversation(&self, run: u64, index: u64) -> Vec<Turn> {
        let mut lengths = Random::new(&[LENGTHS, self.seed, run, index]);
        let mut content = Random::new(&[CONTENT, self.seed, run, index]);
        let mut sampling = Random::new(&[SAMPLING, self.seed, run, index]);
        let turn = |number: u32| {
            let input = self.input.sample(&mut lengths);
            let own = self.piece(&mut content, f64::from(input), number == 0);
            let has_prefix = number == 0 && self.shared_prefix_tokens > 0;
            let piece =
                if has_prefix { join(self.prefix(index % self.prefix_groups), own) } else { own };
            // 53 bits: what JSON numbers keep in every server.
            Turn {
                piece,
                output_tokens: self.output.sample(&mut lengths),
                seed: sampling.bits() >> 11,
            }
        };
        (0..self.turns).map(turn).collect()
    }

    fn prefix(&self, group: u64) -> Piece {
        let mut random = Random::new(&[PREFIX, self.seed, group]);
        self.piece(&mut random, f64::from(self.shared_prefix_tokens), false)
    }

    /// About `tokens` tokens, at least one; `with_overhead` counts those of the template among them.
    fn piece(&self, random: &mut Random, tokens: f64, with_overhead: bool) -> Piece {
        match &self.material {
            Material::Tokens(pool) => {
                let mut pick = || pool[random.below(pool.len() as u64) as usize];
                Piece::Tokens((0..tokens as usize).map(|_| pick()).collect())
            }
            Material::Words { tokens_per_word, overhead } => {
                let tokens = if with_overhead { tokens - overhead } else { tokens };
                let count = (tokens / tokens_per_word).round().max(1.0);
                Piece::Text(words::text(random, count as usize))
            }
        }
    }
}

fn join(prefix: Piece, own: Piece) -> Piece {
    match (prefix, own) {
        (Piece::Text(prefix), Piece::Text(own)) => Piece::Text(format!("{prefix} {own}")),
        (Piece::Tokens(prefix), Piece::Tokens(own)) => Piece::Tokens([prefix, own].concat()),
        // Pieces of one workload are all of one kind.
        (_, own) => own,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn options() -> Options {
        Options {
            input: Length::Uniform(5, 40),
            output: Length::Uniform(1, 20),
            seed: 42,
            ..Options::default()
        }
    }

    fn token_ids() -> Material {
        Material::Tokens((100..200).collect())
    }

    fn single_words() -> Material {
        Material::Words { tokens_per_word: 1.0, overhead: 0.0 }
    }

    fn tokens_of(turn: &Turn) -> &[u32] {
        match &turn.piece {
            Piece::Tokens(tokens) => tokens,
            Piece::Text(text) => panic!("a text: {text}"),
        }
    }

    fn words_of(turn: &Turn) -> usize {
        match &turn.piece {
            Piece::Text(text) => text.split_whitespace().count(),
            Piece::Tokens(tokens) => panic!("tokens: {tokens:?}"),
        }
    }

    #[test]
    fn a_seed_decides_every_conversation() {
        for material in [token_ids(), single_words()] {
            let all = |seed, run| -> Vec<Vec<Turn>> {
                let workload =
                    Workload::new(&Options { seed, turns: 3, ..options() }, material.clone());
                // The order in which they are made does not matter.
                let last = workload.conversation(run, 19);
                let mut all: Vec<_> =
                    (0..19).map(|index| workload.conversation(run, index)).collect();
                all.push(last);
                all
            };
            assert_eq!(all(1, 0), all(1, 0));
            for (a, b) in all(1, 0).iter().zip(&all(2, 0)) {
                assert_ne!(a, b);
            }
            for (a, b) in all(1, 0).iter().zip(&all(1, 1)) {
                assert_ne!(a, b);
            }
        }
    }

    #[test]
    fn lengths_are_those_asked_for() {
        let workload = Workload::new(&options(), token_ids());
        let turns: Vec<Turn> = (0..500).flat_map(|index| workload.conversation(0, index)).collect();
        assert_eq!(turns.len(), 500);
        assert!(turns.iter().all(|turn| (5..=40).contains(&tokens_of(turn).len())));
        assert!(turns.iter().all(|turn| (1..=20).contains(&turn.output_tokens)));
        let mean = turns.iter().map(|turn| tokens_of(turn).len()).sum::<usize>() as f64 / 500.0;
        assert!((mean - 22.5).abs() < 2.0, "{mean}");
    }

    #[test]
    fn words_are_counted_by_what_they_cost() {
        let material = Material::Words { tokens_per_word: 2.0, overhead: 20.0 };
        let fixed = |tokens| Options { input: Length::Fixed(tokens), turns: 2, ..options() };
        let turns = Workload::new(&fixed(100), material.clone()).conversation(0, 0);
        assert_eq!(turns.iter().map(words_of).collect::<Vec<_>>(), [40, 50]);
        // The template alone is longer: there is one word nevertheless.
        assert_eq!(words_of(&Workload::new(&fixed(10), material).conversation(0, 0)[0]), 1);
    }

    #[test]
    fn groups_share_their_prefix_and_nothing_else() {
        let options = Options { shared_prefix_tokens: 64, prefix_groups: 2, ..options() };
        let workload = Workload::new(&options, token_ids());
        let turns: Vec<Turn> =
            (0..4).map(|index| workload.conversation(0, index).remove(0)).collect();
        let (prefixes, rests): (Vec<_>, Vec<_>) =
            turns.iter().map(|turn| tokens_of(turn).split_at(64)).unzip();
        assert_eq!((prefixes[0], prefixes[1]), (prefixes[2], prefixes[3]));
        assert_ne!(prefixes[0], prefixes[1]);
        assert_ne!(rests[0], rests[2]);
        assert!(rests.iter().all(|rest| (5..=40).contains(&rest.len())));
        let other_run = workload.conversation(1, 0);
        assert_eq!(&tokens_of(&other_run[0])[..64], prefixes[0]);
        let options = Options { shared_prefix_tokens: 64, input: Length::Fixed(8), ..options };
        let words = Workload::new(&options, single_words()).conversation(0, 0);
        assert_eq!(words_of(&words[0]), 72);
    }
}
