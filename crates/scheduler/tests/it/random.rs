//! Property tests over random traces: 100,000 operations and more in each run of the tests. For more
//! of them, `cargo xtask soak`.

use std::cell::Cell;

use oarlock_scheduler::Limits;
use oarlock_types::StepPlan;
use proptest::prelude::*;

use crate::trace::{End, Op, limits, ops, run};

fn run_all(limits: Limits, ops: &[Op], end: End) -> Vec<StepPlan> {
    run(limits, ops, end, &Cell::new(0))
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(500))]

    #[test]
    fn random_traces(limits in limits(), ops in ops(180..240)) {
        run_all(limits, &ops, End::Drain);
    }

    #[test]
    fn cancelling_everything_gives_every_block_back(limits in limits(), ops in ops(10..80)) {
        run_all(limits, &ops, End::CancelAll);
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(50))]

    #[test]
    fn the_same_trace_gives_the_same_plans(limits in limits(), ops in ops(50..150)) {
        let plans = run_all(limits, &ops, End::Drain);
        prop_assert_eq!(plans, run_all(limits, &ops, End::Drain));
    }
}
