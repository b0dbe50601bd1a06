//! Which block holds which tokens: pool, tables, prefix index, eviction.
