//! One per replica of a model: owns the scheduler, drives its workers step by step.
