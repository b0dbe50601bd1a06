//! Identifiers: newtypes, so that a slot is never taken for a block.

use std::fmt;

/// Tokens in one KV block.
pub const BLOCK_TOKENS: usize = 16;

macro_rules! id {
    ($(#[$doc:meta])* $name:ident($inner:ty)) => {
        $(#[$doc])*
        #[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
        #[repr(transparent)]
        pub struct $name(pub $inner);

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                self.0.fmt(f)
            }
        }
    };
}

id!(
    /// One entry of a model's vocabulary.
    TokenId(u32)
);
id!(
    /// One request (one choice of one client call) inside one engine.
    RequestId(u64)
);
id!(
    /// Where a worker keeps the state of one running sequence: its tokens, block table and
    /// sampling parameters.
    SlotId(u32)
);
id!(
    /// One block of [`BLOCK_TOKENS`] tokens in the KV cache.
    BlockId(u32)
);
id!(
    /// One step of an engine's group; counts up from 1 within an epoch.
    StepId(u64)
);
id!(
    /// One life of a group of workers. A worker refuses plans of another epoch.
    Epoch(u64)
);
id!(
    /// Microseconds since an origin that the caller chose. The core reads no clock.
    Tick(u64)
);
id!(
    /// Who a request belongs to. Tenants are scheduled fairly among each other.
    TenantId(u64)
);
id!(
    /// Namespace of the prefix cache: two salts never share a block.
    CacheSalt(u64)
);
id!(
    /// Requests that came together, with one prompt: the choices of one client call.
    GroupId(u64)
);

impl TokenId {
    /// The id as an index into the vocabulary.
    #[must_use]
    pub fn index(self) -> usize {
        self.0 as usize
    }
}

impl SlotId {
    /// The id as an index into the worker's slots.
    #[must_use]
    pub fn index(self) -> usize {
        self.0 as usize
    }
}

impl BlockId {
    /// The id as an index into the pool.
    #[must_use]
    pub fn index(self) -> usize {
        self.0 as usize
    }
}
