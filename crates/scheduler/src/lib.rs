//! Which tokens run next: continuous batching over the paged KV cache.
