//! Who was served how much: virtual token counters of tenants inside a class.
//!
//! After Sheng et al. 2024, "Fairness in Serving Large Language Models" (VTC). Each tenant of a class
//! has a counter of the tokens computed for it. The class has a floor, the least counter among the
//! tenants that waited when one of them was last served; a tenant that begins to wait is lifted to
//! it, so that time without requests earns nothing.

use std::collections::BTreeMap;

use oarlock_types::{Priority, TenantId};

/// Tenants without requests that are remembered at most, over all classes: those that were served
/// more than the floor of their class, which would otherwise lose that debt by a moment of silence.
const MAX_IDLE_TENANTS: usize = 1024;

/// One tenant in one class.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Tenant {
    pub(crate) class: Priority,
    id: TenantId,
    /// Tokens computed for it, as lifted; each position of a sequence counts once.
    pub(crate) served: u64,
    /// Its living sequences.
    pub(crate) num_live: u32,
    /// Its waiting sequences, a list in order of arrival.
    pub(crate) first: Option<usize>,
    pub(crate) last: Option<usize>,
    /// The list of the tenants of the class that have a sequence waiting.
    pub(crate) previous: Option<usize>,
    pub(crate) next: Option<usize>,
}

/// What is known of one class.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Class {
    /// Never goes down; no waiting tenant's counter is below.
    pub(crate) floor: u64,
    /// The first tenant that has a sequence waiting.
    pub(crate) first: Option<usize>,
    /// Sequences that wait for their first start, and the tokens that count for them.
    pub(crate) num_queued: u32,
    pub(crate) queued_tokens: u64,
}

/// All tenants that have sequences or debts, by an index that stays the same meanwhile.
#[derive(Debug)]
pub(crate) struct Tenants {
    entries: Vec<Tenant>,
    free: Vec<usize>,
    /// Memory of [`Self::forget_least`].
    idle: Vec<(u64, usize)>,
    index: BTreeMap<(Priority, TenantId), usize>,
    /// Tenants in the index without a living sequence.
    num_idle: usize,
    classes: Vec<Class>,
}

impl Tenants {
    pub(crate) fn new() -> Self {
        Self {
            entries: Vec::new(),
            free: Vec::new(),
            idle: Vec::with_capacity(MAX_IDLE_TENANTS + 1),
            index: BTreeMap::new(),
            num_idle: 0,
            classes: vec![Class::default(); usize::from(u8::MAX) + 1],
        }
    }

    pub(crate) fn get(&self, tenant: usize) -> &Tenant {
        &self.entries[tenant]
    }

    pub(crate) fn get_mut(&mut self, tenant: usize) -> &mut Tenant {
        &mut self.entries[tenant]
    }

    pub(crate) fn class(&self, class: Priority) -> &Class {
        &self.classes[usize::from(class.0)]
    }

    pub(crate) fn class_mut(&mut self, class: Priority) -> &mut Class {
        &mut self.classes[usize::from(class.0)]
    }

    /// A tenant that is remembered.
    pub(crate) fn find(&self, class: Priority, id: TenantId) -> Option<&Tenant> {
        self.index.get(&(class, id)).map(|&tenant| &self.entries[tenant])
    }

    /// Counts a new sequence of a tenant, which may be new itself.
    pub(crate) fn enter(&mut self, class: Priority, id: TenantId) -> usize {
        if let Some(&tenant) = self.index.get(&(class, id)) {
            let entry = &mut self.entries[tenant];
            self.num_idle -= usize::from(entry.num_live == 0);
            entry.num_live += 1;
            return tenant;
        }
        let entry = Tenant {
            class,
            id,
            served: 0,
            num_live: 1,
            first: None,
            last: None,
            previous: None,
            next: None,
        };
        let tenant = if let Some(tenant) = self.free.pop() {
            self.entries[tenant] = entry;
            tenant
        } else {
            self.entries.push(entry);
            // So that forgetting never allocates.
            self.free.reserve(self.entries.len());
            self.entries.len() - 1
        };
        self.index.insert((class, id), tenant);
        tenant
    }

    /// Counts a sequence that is gone, and forgets the tenant if nothing is left of it to remember.
    pub(crate) fn leave(&mut self, tenant: usize) {
        let entry = &mut self.entries[tenant];
        entry.num_live -= 1;
        if entry.num_live > 0 {
            return;
        }
        self.num_idle += 1;
        if self.debt(tenant) == 0 {
            self.forget(tenant);
        } else if self.num_idle > MAX_IDLE_TENANTS {
            self.forget_least();
        }
    }

    /// Forgets a quarter of the idle tenants, those with the least debts: all at once, since looking
    /// for them means looking at everybody.
    fn forget_least(&mut self) {
        let mut idle = std::mem::take(&mut self.idle);
        let tenants = self.index.values().filter(|tenant| self.entries[**tenant].num_live == 0);
        idle.extend(tenants.map(|&tenant| (self.debt(tenant), tenant)));
        let num_forgotten = idle.len() - MAX_IDLE_TENANTS / 4 * 3;
        idle.select_nth_unstable(num_forgotten - 1);
        for (_, tenant) in idle.drain(..).take(num_forgotten) {
            self.forget(tenant);
        }
        self.idle = idle;
    }

    /// Tokens served beyond the floor.
    fn debt(&self, tenant: usize) -> u64 {
        let entry = &self.entries[tenant];
        entry.served.saturating_sub(self.class(entry.class).floor)
    }

    fn forget(&mut self, tenant: usize) {
        let entry = &self.entries[tenant];
        let known = self.index.remove(&(entry.class, entry.id));
        debug_assert_eq!(known, Some(tenant), "a tenant is in the index until it is forgotten");
        self.free.push(tenant);
        self.num_idle -= 1;
    }

    /// Tenants of a class that have a sequence waiting, in no particular order.
    pub(crate) fn waiting_in(&self, class: Priority) -> impl Iterator<Item = usize> + '_ {
        std::iter::successors(self.class(class).first, |tenant| self.entries[*tenant].next)
    }

    /// The least counter among the tenants of a class that have a sequence waiting.
    pub(crate) fn least_waiting(&self, class: Priority) -> Option<u64> {
        self.waiting_in(class).map(|tenant| self.entries[tenant].served).min()
    }

    /// All tenants that are remembered.
    pub(crate) fn iter(&self) -> impl Iterator<Item = (usize, &Tenant)> {
        self.index.values().map(|&tenant| (tenant, &self.entries[tenant]))
    }

    /// # Panics
    /// If a bound or a count is not true.
    pub(crate) fn check_counts(&self) {
        let idle = self.iter().filter(|(_, tenant)| tenant.num_live == 0);
        assert_eq!(idle.count(), self.num_idle, "tenants without sequences");
        assert!(self.num_idle <= MAX_IDLE_TENANTS, "too many tenants are remembered");
        assert_eq!(self.index.len() + self.free.len(), self.entries.len(), "tenants are lost");
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_debts_are_remembered_and_only_so_many() {
        let mut tenants = Tenants::new();
        let class = Priority(3);
        for id in 0..2 * MAX_IDLE_TENANTS as u64 {
            let even = tenants.enter(class, TenantId(id));
            tenants.get_mut(even).served = if id % 4 == 0 { 0 } else { 1000 + id };
            tenants.leave(even);
            tenants.check_counts();
        }
        assert!(tenants.num_idle <= MAX_IDLE_TENANTS, "too many");
        assert!(tenants.num_idle >= MAX_IDLE_TENANTS / 4 * 3, "too few");
        // The largest debts stay.
        let last = tenants.enter(class, TenantId(2 * MAX_IDLE_TENANTS as u64 - 1));
        assert_eq!(tenants.get(last).served, 1000 + 2 * MAX_IDLE_TENANTS as u64 - 1);
        let first = tenants.enter(class, TenantId(1));
        assert_eq!(tenants.get(first).served, 0);
        // What is below the floor is forgotten as soon as it is idle.
        tenants.class_mut(class).floor = 1_000_000;
        tenants.leave(last);
        tenants.check_counts();
        assert!(tenants.entries.len() <= MAX_IDLE_TENANTS + 2);
    }
}
