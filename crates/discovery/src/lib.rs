//! Membership: which engines exist and what they serve. In memory here; a shared store later.
//!
//! Readers hold a [`View`] and see the latest snapshot; nothing here waits on an engine.

use std::collections::BTreeMap;
use std::sync::Arc;

use oarlock_rpc::EngineApi;
use tokio::sync::watch;

/// One known engine.
#[derive(Clone)]
pub struct Member {
    /// Unique name of the replica.
    pub id: String,
    /// The model it serves, as clients name it.
    pub served_name: String,
    /// How to talk to it.
    pub engine: Arc<dyn EngineApi>,
}

/// One state of the cluster: members by id.
pub type Snapshot = Arc<BTreeMap<String, Member>>;

/// A reader's handle: always the latest snapshot.
#[derive(Clone)]
pub struct View {
    receiver: watch::Receiver<Snapshot>,
}

impl View {
    /// The cluster as of now.
    pub fn snapshot(&self) -> Snapshot {
        self.receiver.borrow().clone()
    }
}

/// Membership inside one process: `oarlock serve` on one machine, and tests.
pub struct InMemory {
    sender: watch::Sender<Snapshot>,
}

impl Default for InMemory {
    fn default() -> Self {
        Self { sender: watch::Sender::new(Snapshot::default()) }
    }
}

impl InMemory {
    /// Adds a member, or replaces the one with the same id.
    pub fn register(&self, member: Member) {
        self.sender.send_modify(|members| {
            Arc::make_mut(members).insert(member.id.clone(), member);
        });
    }

    /// Removes a member; unknown ids are ignored, as a lease may expire twice.
    pub fn deregister(&self, id: &str) {
        self.sender.send_modify(|members| {
            Arc::make_mut(members).remove(id);
        });
    }

    /// A handle for readers.
    pub fn view(&self) -> View {
        View { receiver: self.sender.subscribe() }
    }
}
