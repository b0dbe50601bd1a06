//! Faults that tests ask for by environment variables, which are never set outside of tests: a worker ends
//! as by a bug in a kernel, at a token or at a moment.

use std::ops::Range;
use std::time::Duration;

use oarlock_backend::Backend;
use oarlock_collective::{Collective, CollectiveError};
use oarlock_types::{Epoch, Shard, StepId, StepPlan, TokenId};

/// `TOKEN` or `TOKEN@RANK`: computing the token ends the worker, of that rank or of all.
const TOKEN: &str = "OARLOCK_FAULT_TOKEN";
/// `RANK:STEP:MOMENT`: the rank's first process ends at that step: before it looks at the plan, inside of
/// the step's second sum, or after it gave its result (`before`, `inside`, `after`).
const STEP: &str = "OARLOCK_FAULT_STEP";
/// The group whose rank ends at a step; those after it live.
const FIRST: Epoch = Epoch(1);
/// Until a result has left the process.
const SENT: Duration = Duration::from_millis(20);

/// When a worker is to end.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Fault {
    token: Option<TokenId>,
    step: Option<(StepId, Moment)>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Moment {
    Before,
    Inside,
    After,
}

impl Fault {
    /// What the environment asks of this rank.
    pub(crate) fn from_environment(shard: Shard, epoch: Epoch) -> Self {
        let token = std::env::var(TOKEN).ok().and_then(|words| parse_token(&words, shard.rank));
        let step = std::env::var(STEP).ok().and_then(|words| parse_step(&words, shard.rank));
        let fault = Self { token, step: step.filter(|_| epoch == FIRST) };
        if fault.token.is_some() || fault.step.is_some() {
            tracing::warn!(?fault, "this worker is to end by itself ({TOKEN}, {STEP})");
        }
        fault
    }

    /// Ends the process if these are to.
    pub(crate) fn at_tokens(&self, tokens: &[TokenId]) {
        if self.token.is_some_and(|token| tokens.contains(&token)) {
            std::process::abort();
        }
    }

    /// A plan has come.
    pub(crate) fn before(&self, plan: &StepPlan) {
        if self.step == Some((plan.step, Moment::Before)) {
            std::process::abort();
        }
    }

    /// A result was given.
    pub(crate) fn after(&self, step: StepId) {
        if self.step == Some((step, Moment::After)) {
            std::thread::sleep(SENT);
            std::process::abort();
        }
    }

    /// The collective, with the fault inside of it if there is to be one.
    pub(crate) fn wrap<B: Backend>(&self, inner: Box<dyn Collective<B>>) -> Box<dyn Collective<B>> {
        match self.step {
            Some((step, Moment::Inside)) => {
                Box::new(Faulty { inner, step, broadcasts: 0, sums: 0 })
            }
            _ => inner,
        }
    }
}

fn parse_token(words: &str, rank: u32) -> Option<TokenId> {
    let (token, of) = words.split_once('@').map_or((words, None), |(token, of)| (token, Some(of)));
    let is_own = of.is_none_or(|of| of.parse() == Ok(rank));
    token.parse().ok().filter(|_| is_own).map(TokenId)
}

fn parse_step(words: &str, rank: u32) -> Option<(StepId, Moment)> {
    let mut words = words.split(':');
    let is_own = words.next()?.parse() == Ok(rank);
    let step = StepId(words.next()?.parse().ok()?);
    let moment = match words.next()? {
        "before" => Moment::Before,
        "inside" => Moment::Inside,
        "after" => Moment::After,
        _ => return None,
    };
    is_own.then_some((step, moment))
}

/// Ends the process in a sum for which the other ranks wait.
struct Faulty<B: Backend> {
    inner: Box<dyn Collective<B>>,
    step: StepId,
    /// One ends every step that samples.
    broadcasts: u64,
    sums: u32,
}

impl<B: Backend> Collective<B> for Faulty<B> {
    fn shard(&self) -> Shard {
        self.inner.shard()
    }

    fn all_reduce(
        &mut self,
        backend: &mut B,
        tensor: &mut B::Tensor,
    ) -> Result<(), CollectiveError> {
        if self.broadcasts + 1 >= self.step.0 {
            self.sums += 1;
            if self.sums == 2 {
                std::process::abort();
            }
        }
        self.inner.all_reduce(backend, tensor)
    }

    fn gather_columns(
        &mut self,
        backend: &mut B,
        whole: Option<&mut B::Tensor>,
        own: &B::Tensor,
        columns: &[Range<usize>],
    ) -> Result<(), CollectiveError> {
        self.inner.gather_columns(backend, whole, own, columns)
    }

    fn broadcast(&mut self, values: &mut [u32]) -> Result<(), CollectiveError> {
        self.broadcasts += 1;
        self.inner.broadcast(values)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn faults_are_of_one_rank() {
        assert_eq!(parse_token("310", 3), Some(TokenId(310)));
        assert_eq!(parse_token("310@1", 1), Some(TokenId(310)));
        assert_eq!(parse_token("310@1", 0), None);
        assert_eq!(parse_step("1:20:inside", 1), Some((StepId(20), Moment::Inside)));
        assert_eq!(parse_step("1:20:inside", 0), None);
        assert_eq!(parse_step("1:20:never", 1), None);
    }
}
