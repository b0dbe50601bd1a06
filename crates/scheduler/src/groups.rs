//! Siblings: sequences with one prompt that came together. All but the first wait for its prompt.

use std::collections::BTreeMap;

use oarlock_types::{BLOCK_TOKENS, CacheSalt, GroupId, Priority, Request, TenantId};

use crate::sequence::Sequences;

/// Whose siblings: a group id alone joins nothing across tenants, classes or salts.
type Key = (GroupId, TenantId, Priority, CacheSalt);

/// Tokens of a prompt that siblings share: its full blocks without the last token, which is always
/// computed.
pub(crate) fn shared_tokens(num_prompt: u32) -> u32 {
    let block = BLOCK_TOKENS as u32;
    (num_prompt - 1) / block * block
}

/// The living members of one group, a list in order of arrival.
#[derive(Clone, Copy, Debug)]
struct Group {
    key: Key,
    first: usize,
    last: usize,
}

/// All groups with living members.
///
/// The first living member is never held back, and comes before the others in the order of those
/// that wait, since it is of the same class and tenant: as long as it lives, it gets on; when it is
/// gone, the next one is the first. So nobody waits for ever.
#[derive(Debug, Default)]
pub(crate) struct Groups {
    entries: Vec<Option<Group>>,
    free: Vec<usize>,
    index: BTreeMap<Key, usize>,
}

impl Groups {
    /// The group that a request would join as a later member.
    pub(crate) fn find(&self, sequences: &Sequences, request: &Request) -> Option<usize> {
        let key = (request.group?, request.tenant, request.priority, request.salt);
        let group = *self.index.get(&key)?;
        let first = self.entries[group].as_ref().expect("a group in the index").first;
        let prompt = &request.tokens[..request.num_prompt as usize];
        (sequences[first].prompt() == prompt).then_some(group)
    }

    /// Adds a sequence, the latest to arrive, to the group that it names; not if its prompt is
    /// another one than the first member's.
    pub(crate) fn join(&mut self, sequences: &mut Sequences, at: usize) {
        let request = &sequences[at].request;
        let Some(id) = request.group else { return };
        let key = (id, request.tenant, request.priority, request.salt);
        if let Some(&group) = self.index.get(&key) {
            let entry = self.entries[group].as_mut().expect("a group in the index");
            if sequences[entry.first].prompt() == sequences[at].prompt() {
                let previous = std::mem::replace(&mut entry.last, at);
                sequences[previous].next_sibling = Some(at);
                sequences[at].previous_sibling = Some(previous);
                sequences[at].group = Some(group);
            }
            return;
        }
        let entry = Some(Group { key, first: at, last: at });
        let group = if let Some(group) = self.free.pop() {
            self.entries[group] = entry;
            group
        } else {
            self.entries.push(entry);
            // So that leaving never allocates.
            self.free.reserve(self.entries.len());
            self.entries.len() - 1
        };
        self.index.insert(key, group);
        sequences[at].group = Some(group);
    }

    /// Takes a sequence that ends out of its group; returns the one that becomes the first by that.
    pub(crate) fn leave(&mut self, sequences: &mut Sequences, at: usize) -> Option<usize> {
        let sequence = &mut sequences[at];
        let group = sequence.group.take()?;
        let (previous, next) = (sequence.previous_sibling.take(), sequence.next_sibling.take());
        if let Some(previous) = previous {
            sequences[previous].next_sibling = next;
        }
        if let Some(next) = next {
            sequences[next].previous_sibling = previous;
        }
        let entry = self.entries[group].as_mut().expect("a member's group");
        match (previous, next) {
            (None, None) => {
                self.index.remove(&entry.key);
                self.entries[group] = None;
                self.free.push(group);
            }
            (None, Some(next)) => entry.first = next,
            (Some(previous), None) => entry.last = previous,
            (Some(_), Some(_)) => {}
        }
        next.filter(|_| previous.is_none())
    }

    /// Whether a waiting sequence waits for the full blocks of its prompt, which the first of its
    /// group computes. Those that do not read the cache have nothing to wait for.
    pub(crate) fn holds_back(&self, sequences: &Sequences, at: usize) -> bool {
        let sequence = &sequences[at];
        let Some(group) = sequence.group else { return false };
        let first = self.entries[group].as_ref().expect("a member's group").first;
        if first == at || sequence.request.prompt_logprobs.is_some() {
            return false;
        }
        sequences[first].computed < shared_tokens(sequence.request.num_prompt)
    }

    /// # Panics
    /// If lists and members disagree.
    pub(crate) fn check_invariants(&self, sequences: &Sequences) {
        assert_eq!(self.index.len() + self.free.len(), self.entries.len(), "groups are lost");
        let mut num_members = 0;
        for (key, &group) in &self.index {
            let entry = self.entries[group].as_ref().expect("a group in the index");
            assert_eq!(entry.key, *key);
            let members: Vec<usize> =
                std::iter::successors(Some(entry.first), |at| sequences[*at].next_sibling)
                    .collect();
            assert_eq!(members.last(), Some(&entry.last), "the end of a group");
            let arrivals = members.iter().map(|at| sequences[*at].order.arrival);
            assert!(arrivals.is_sorted(), "a group is out of order");
            for &at in &members {
                let request = &sequences[at].request;
                let own = (request.tenant, request.priority, request.salt);
                assert_eq!((sequences[at].group, own), (Some(group), (key.1, key.2, key.3)));
                assert_eq!(sequences[at].prompt(), sequences[entry.first].prompt());
            }
            assert!(!self.holds_back(sequences, entry.first), "the first of a group waits");
            num_members += members.len();
        }
        let in_groups = sequences.iter().filter(|(_, sequence)| sequence.group.is_some());
        assert_eq!(in_groups.count(), num_members, "members are lost");
    }
}
