//! The owners of running requests: where each one's events go.

use std::collections::BTreeMap;

use oarlock_types::{Event, EventKind, RequestId};
use tokio::sync::mpsc;

/// Where the events of one request go. Unbounded, yet bounded by the request itself: it never gets
/// more events than its prompt and `max_tokens` allow, and a slow reader must not delay others.
pub(crate) type EventSender = mpsc::UnboundedSender<EventKind>;

/// Live requests by id.
#[derive(Default)]
pub(crate) struct Requests {
    owners: BTreeMap<RequestId, EventSender>,
}

impl Requests {
    pub(crate) fn insert(&mut self, id: RequestId, owner: EventSender) {
        self.owners.insert(id, owner);
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.owners.is_empty()
    }

    pub(crate) fn ids(&self) -> Vec<RequestId> {
        self.owners.keys().copied().collect()
    }

    /// Hands events to their owners. Requests whose owner is gone are added to `orphans`.
    pub(crate) fn deliver(&mut self, events: &mut Vec<Event>, orphans: &mut Vec<RequestId>) {
        for Event { request, kind } in events.drain(..) {
            let finished = matches!(kind, EventKind::Finished { .. });
            let Some(owner) = self.owners.get(&request) else { continue };
            if owner.send(kind).is_err() && !finished {
                orphans.push(request);
            }
            if finished {
                self.owners.remove(&request);
            }
        }
    }
}
