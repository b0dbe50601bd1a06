//! What the ranks of a tensor-parallel group exchange.
//!
//! [`Collective`] works on a backend's tensors and is what a model calls; [`Transport`] moves plain
//! numbers between the memory of processes. [`HostCollective`] makes the one from the other for backends
//! whose tensors lie in host memory.

mod error;
mod failure;
mod host;
mod local;
mod operation;
mod place;
mod shared_memory;
mod tcp;
mod transport;
mod tree;

pub use error::CollectiveError;
pub use host::{Alone, Collective, HostCollective};
pub use local::{LocalTransport, local_group};
pub use place::{host_identity, shares_memory_with};
pub use shared_memory::{Segment, SharedMemory};
pub use tcp::{Tcp, TcpRendezvous};
pub use transport::Transport;
