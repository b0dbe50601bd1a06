//! Sequences that wait: strict classes, inside a class fair over tenants, inside a tenant by arrival.

use oarlock_types::{Priority, TenantId};

use crate::groups::Groups;
use crate::sequence::Sequences;
use crate::tenants::Tenants;

/// All waiting sequences. A preempted one comes back to its old place in its tenant's list.
///
/// Lists are linked through the sequences and tenants themselves, so that nothing here allocates but
/// the entry of a tenant.
#[derive(Debug)]
pub(crate) struct Waiting {
    pub(crate) tenants: Tenants,
    /// Classes with a waiting sequence, one bit each.
    occupied: [u64; 4],
    len: usize,
    num_tokens: u64,
}

/// The sequence that starts next, as far as the order goes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Candidate {
    pub(crate) sequence: usize,
    /// The least counter among the waiting tenants of its class.
    least: u64,
}

impl Waiting {
    pub(crate) fn new() -> Self {
        Self { tenants: Tenants::new(), occupied: [0; 4], len: 0, num_tokens: 0 }
    }

    pub(crate) fn len(&self) -> usize {
        self.len
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// Tokens of all waiting sequences.
    pub(crate) fn num_tokens(&self) -> u64 {
        self.num_tokens
    }

    /// Notes a token that a waiting sequence got from a plan before its preemption.
    pub(crate) fn note_token(&mut self) {
        self.num_tokens += 1;
    }

    /// The index of a tenant for one more sequence of its.
    pub(crate) fn enter(&mut self, class: Priority, tenant: TenantId) -> usize {
        self.tenants.enter(class, tenant)
    }

    /// Sequences of a class and above that wait for their first start, and the tokens that count for
    /// them.
    pub(crate) fn queued_up_to(&self, class: Priority) -> (u64, u64) {
        let classes = self.classes().take_while(|other| *other <= class);
        classes.map(|other| self.tenants.class(other)).fold((0, 0), |(count, tokens), class| {
            (count + u64::from(class.num_queued), tokens + class.queued_tokens)
        })
    }

    /// Notes that nothing is shared any more with a sequence that comes before this one: all of its
    /// tokens count, if it waits for its first start.
    pub(crate) fn charge_whole(&mut self, sequences: &mut Sequences, at: usize) {
        let sequence = &mut sequences[at];
        let num_tokens = sequence.num_tokens();
        if let Some(charge) = &mut sequence.queue_charge {
            let class = self.tenants.class_mut(sequence.order.priority);
            class.queued_tokens += u64::from(num_tokens - *charge);
            *charge = num_tokens;
        }
    }

    /// Adds a sequence that is new, and for which `charge` tokens count. Its tenant, if nothing of it waits yet, is lifted to the least
    /// counter among those of its class that wait.
    pub(crate) fn push(&mut self, sequences: &mut Sequences, at: usize, charge: u32) {
        sequences[at].queue_charge = Some(charge);
        let class = self.tenants.class_mut(sequences[at].order.priority);
        class.num_queued += 1;
        class.queued_tokens += u64::from(charge);
        let tenant = sequences[at].tenant;
        let entry = self.tenants.get(tenant);
        if entry.first.is_none() {
            let class = entry.class;
            let least = self.tenants.least_waiting(class).unwrap_or(0);
            let floor = &mut self.tenants.class_mut(class).floor;
            *floor = least.max(*floor);
        }
        let last = self.tenants.get(tenant).last;
        self.insert_behind(sequences, at, last);
    }

    /// Adds a sequence that ran. Most of those are among the first of their tenant.
    pub(crate) fn push_back(&mut self, sequences: &mut Sequences, at: usize) {
        let (tenant, arrival) = (sequences[at].tenant, sequences[at].order.arrival);
        let mut previous = None;
        let mut next = self.tenants.get(tenant).first;
        while let Some(other) = next.filter(|other| sequences[*other].order.arrival < arrival) {
            previous = next;
            next = sequences[other].next_waiting;
        }
        self.insert_behind(sequences, at, previous);
    }

    fn insert_behind(&mut self, sequences: &mut Sequences, at: usize, previous: Option<usize>) {
        let tenant = sequences[at].tenant;
        if self.tenants.get(tenant).first.is_none() {
            self.link_tenant(tenant);
        }
        let entry = self.tenants.get_mut(tenant);
        let next = match previous {
            Some(previous) => sequences[previous].next_waiting.replace(at),
            None => entry.first.replace(at),
        };
        match next {
            Some(next) => sequences[next].previous_waiting = Some(at),
            None => entry.last = Some(at),
        }
        let sequence = &mut sequences[at];
        sequence.previous_waiting = previous;
        sequence.next_waiting = next;
        self.len += 1;
        self.num_tokens += u64::from(sequence.num_tokens());
    }

    /// Takes out a waiting sequence.
    pub(crate) fn remove(&mut self, sequences: &mut Sequences, at: usize) {
        let sequence = &mut sequences[at];
        let (previous, next) = (sequence.previous_waiting.take(), sequence.next_waiting.take());
        if let Some(charge) = sequence.queue_charge.take() {
            let class = self.tenants.class_mut(sequence.order.priority);
            class.num_queued -= 1;
            class.queued_tokens -= u64::from(charge);
        }
        let tenant = sequence.tenant;
        self.len -= 1;
        self.num_tokens -= u64::from(sequence.num_tokens());
        let entry = self.tenants.get_mut(tenant);
        match previous {
            Some(previous) => sequences[previous].next_waiting = next,
            None => entry.first = next,
        }
        match next {
            Some(next) => sequences[next].previous_waiting = previous,
            None => entry.last = previous,
        }
        if entry.first.is_none() {
            self.unlink_tenant(tenant);
        }
    }

    /// A tenant begins to wait.
    fn link_tenant(&mut self, tenant: usize) {
        let class = self.tenants.get(tenant).class;
        let list = self.tenants.class_mut(class);
        let (floor, next) = (list.floor, list.first.replace(tenant));
        if let Some(next) = next {
            self.tenants.get_mut(next).previous = Some(tenant);
        }
        let entry = self.tenants.get_mut(tenant);
        entry.next = next;
        entry.previous = None;
        entry.served = entry.served.max(floor);
        self.occupied[usize::from(class.0) / 64] |= 1 << (class.0 % 64);
    }

    fn unlink_tenant(&mut self, tenant: usize) {
        let entry = self.tenants.get_mut(tenant);
        let (previous, next, class) = (entry.previous.take(), entry.next.take(), entry.class);
        match previous {
            Some(previous) => self.tenants.get_mut(previous).next = next,
            None => self.tenants.class_mut(class).first = next,
        }
        if let Some(next) = next {
            self.tenants.get_mut(next).previous = previous;
        }
        if self.tenants.class(class).first.is_none() {
            self.occupied[usize::from(class.0) / 64] &= !(1 << (class.0 % 64));
        }
    }

    /// The highest class with a waiting sequence.
    pub(crate) fn highest(&self) -> Option<Priority> {
        self.classes().next()
    }

    /// Classes with a waiting sequence, the highest first.
    fn classes(&self) -> impl Iterator<Item = Priority> + '_ {
        self.occupied.iter().enumerate().flat_map(|(word, &bits)| {
            let rest = std::iter::successors(Some(bits), |bits| Some(bits & bits.wrapping_sub(1)));
            rest.take_while(|bits| *bits != 0)
                .map(move |bits| Priority((word * 64) as u8 + bits.trailing_zeros() as u8))
        })
    }

    /// Which sequence starts next: of the highest class, of the tenant that was served least (of
    /// equals, the one that has waited longest), the earliest. Those that wait for a sibling's prompt
    /// do not count. Only of classes above `below`, if given.
    ///
    /// Costs one look at each tenant that waits in the class.
    pub(crate) fn candidate(
        &self,
        sequences: &Sequences,
        groups: &Groups,
        below: Option<Priority>,
    ) -> Option<Candidate> {
        let classes = self.classes().take_while(|class| below.is_none_or(|below| *class < below));
        for class in classes {
            let mut best: Option<((u64, u64), usize)> = None;
            let mut least = u64::MAX;
            for tenant in self.tenants.waiting_in(class) {
                let served = self.tenants.get(tenant).served;
                least = least.min(served);
                let ready = |at: &usize| !groups.holds_back(sequences, *at);
                let Some(at) = self.of_tenant(sequences, tenant).find(ready) else { continue };
                let key = (served, sequences[at].order.arrival);
                if best.is_none_or(|best| key < best.0) {
                    best = Some((key, at));
                }
            }
            if let Some((_, sequence)) = best {
                return Some(Candidate { sequence, least });
            }
        }
        None
    }

    /// Notes that a candidate starts.
    pub(crate) fn note_served(&mut self, class: Priority, candidate: Candidate) {
        let floor = &mut self.tenants.class_mut(class).floor;
        *floor = candidate.least.max(*floor);
    }

    /// Counts tokens computed for a tenant.
    pub(crate) fn charge(&mut self, tenant: usize, num_tokens: u32) {
        self.tenants.get_mut(tenant).served += u64::from(num_tokens);
    }

    /// Waiting sequences of a tenant, the earliest first.
    fn of_tenant<'a>(
        &self,
        sequences: &'a Sequences,
        tenant: usize,
    ) -> impl Iterator<Item = usize> + 'a {
        let first = self.tenants.get(tenant).first;
        std::iter::successors(first, |at| sequences[*at].next_waiting)
    }

    /// Checks lists, counts and counters.
    ///
    /// # Panics
    /// If something is not true.
    pub(crate) fn check_invariants(&self, sequences: &Sequences) {
        self.tenants.check_counts();
        let (mut len, mut num_tokens) = (0, 0);
        for (tenant, entry) in self.tenants.iter() {
            let live = sequences.iter().filter(|(_, sequence)| sequence.tenant == tenant).count();
            assert_eq!(live as u32, entry.num_live, "living sequences of a tenant");
            let of_tenant: Vec<usize> = self.of_tenant(sequences, tenant).collect();
            let arrivals = of_tenant.iter().map(|at| sequences[*at].order.arrival);
            assert!(arrivals.is_sorted(), "a tenant's list is out of order");
            assert_eq!(of_tenant.last().copied(), entry.last, "the end of a tenant's list");
            for &at in &of_tenant {
                assert!(sequences[at].slot().is_none(), "a running sequence is in a list");
                assert_eq!(sequences[at].tenant, tenant, "a sequence is in another's list");
                let is_new = sequences[at].cached_tokens.is_none();
                assert_eq!(sequences[at].queue_charge.is_some(), is_new, "only new ones count");
                num_tokens += u64::from(sequences[at].num_tokens());
            }
            len += of_tenant.len();
            let listed = self.tenants.waiting_in(entry.class).filter(|at| *at == tenant).count();
            assert_eq!(listed, usize::from(!of_tenant.is_empty()), "tenants that wait are listed");
            let floor = self.tenants.class(entry.class).floor;
            assert!(
                of_tenant.is_empty() || entry.served >= floor,
                "a tenant below the floor waits"
            );
        }
        assert_eq!((len, num_tokens), (self.len, self.num_tokens), "sequences and tokens waiting");
        let mut charges = [(0_u32, 0_u64); 256];
        for (_, sequence) in sequences.iter() {
            let of_class = &mut charges[usize::from(sequence.order.priority.0)];
            of_class.0 += u32::from(sequence.queue_charge.is_some());
            of_class.1 += u64::from(sequence.queue_charge.unwrap_or(0));
        }
        for (class, charges) in (0..=u8::MAX).map(Priority).zip(charges) {
            let known = self.tenants.class(class);
            assert_eq!(charges, (known.num_queued, known.queued_tokens), "what counts of a class");
        }
        let occupied = (0..=u8::MAX).map(Priority);
        let occupied = occupied.filter(|class| self.tenants.class(*class).first.is_some());
        assert!(occupied.eq(self.classes()), "classes that wait");
    }
}
