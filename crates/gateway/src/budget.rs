//! How many bytes all request bodies together may take.

use std::sync::Arc;

use tokio::sync::{OwnedSemaphorePermit, Semaphore};

/// Bytes are counted in units of this size.
const UNIT_BYTES: usize = 1 << 10;

/// A number of bytes that many share.
#[derive(Debug)]
pub(crate) struct ByteBudget {
    units: Arc<Semaphore>,
    total: u32,
}

/// A part of the budget; dropping it gives it back.
#[derive(Debug, Default)]
pub(crate) struct Reserved(Option<OwnedSemaphorePermit>);

impl ByteBudget {
    pub(crate) fn new(bytes: usize) -> Self {
        let total = u32::try_from(bytes.div_ceil(UNIT_BYTES)).unwrap_or(u32::MAX).max(1);
        let total = total.min(u32::try_from(Semaphore::MAX_PERMITS).unwrap_or(u32::MAX));
        Self { units: Arc::new(Semaphore::new(total as usize)), total }
    }

    /// Makes `reserved` at least `bytes` large, or changes nothing and says false. What is larger
    /// than the whole budget takes all of it: it goes alone, rather than never.
    pub(crate) fn grow(&self, reserved: &mut Reserved, bytes: usize) -> bool {
        let wanted = u32::try_from(bytes.div_ceil(UNIT_BYTES)).unwrap_or(u32::MAX).min(self.total);
        let has = reserved.0.as_ref().map_or(0, |permit| permit.num_permits() as u32);
        if wanted <= has {
            return true;
        }
        let Ok(more) = Arc::clone(&self.units).try_acquire_many_owned(wanted - has) else {
            return false;
        };
        match &mut reserved.0 {
            Some(permit) => permit.merge(more),
            none => *none = Some(more),
        }
        true
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_given_back_can_be_had_again() {
        let budget = ByteBudget::new(10 << 10);
        let (mut first, mut second) = (Reserved::default(), Reserved::default());
        assert!(budget.grow(&mut first, 1) && budget.grow(&mut first, 1024));
        assert!(budget.grow(&mut second, 9 << 10));
        assert!(!budget.grow(&mut first, 1025));
        assert!(budget.grow(&mut first, 1024), "what it has it keeps");
        drop(second);
        assert!(budget.grow(&mut first, 10 << 10));
        drop(first);
        let mut whole = Reserved::default();
        assert!(budget.grow(&mut whole, usize::MAX));
        assert!(!budget.grow(&mut Reserved::default(), 1));
    }
}
