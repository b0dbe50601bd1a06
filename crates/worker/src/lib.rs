//! One process per device: holds its weights and KV pages, executes step plans.
