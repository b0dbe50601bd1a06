//! How many connections each client has.

use std::collections::HashMap;
use std::collections::hash_map::Entry;
use std::net::{IpAddr, Ipv6Addr};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

/// Counts connections by address. Those of one IPv6 network of /64 count together: one client has
/// all of its addresses.
#[derive(Clone, Debug)]
pub(crate) struct Addresses {
    counts: Arc<Mutex<HashMap<IpAddr, usize>>>,
    limit: usize,
}

/// One counted connection.
#[derive(Debug)]
pub(crate) struct Counted {
    addresses: Addresses,
    address: IpAddr,
}

impl Addresses {
    pub(crate) fn new(limit: usize) -> Self {
        Self { counts: Arc::default(), limit: limit.max(1) }
    }

    fn lock(&self) -> MutexGuard<'_, HashMap<IpAddr, usize>> {
        self.counts.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Counts a connection; `None` where its address has as many as it may.
    pub(crate) fn count(&self, address: IpAddr) -> Option<Counted> {
        let address = network(address);
        let mut counts = self.lock();
        let count = counts.entry(address).or_insert(0);
        if *count >= self.limit {
            return None;
        }
        *count += 1;
        Some(Counted { addresses: self.clone(), address })
    }
}

fn network(address: IpAddr) -> IpAddr {
    match address.to_canonical() {
        IpAddr::V6(address) => {
            let host_bits = u128::from(u64::MAX);
            IpAddr::V6(Ipv6Addr::from_bits(address.to_bits() & !host_bits))
        }
        address @ IpAddr::V4(_) => address,
    }
}

impl Drop for Counted {
    fn drop(&mut self) {
        if let Entry::Occupied(mut count) = self.addresses.lock().entry(self.address) {
            *count.get_mut() -= 1;
            if *count.get() == 0 {
                count.remove();
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_network_has_its_own_count() {
        let addresses = Addresses::new(2);
        let count = |text: &str| addresses.count(text.parse().unwrap());
        let first = count("10.0.0.1").unwrap();
        let _second = count("::ffff:10.0.0.1").unwrap();
        assert!(count("10.0.0.1").is_none());
        let _other = count("10.0.0.2").unwrap();
        let _v6 = (count("2001:db8::1").unwrap(), count("2001:db8::ffff:1").unwrap());
        assert!(count("2001:db8::2").is_none());
        let neighbor = count("2001:db8:0:1::2").unwrap();
        drop(first);
        assert!(count("10.0.0.1").is_some());
        drop(neighbor);
        assert_eq!(addresses.lock().len(), 3, "networks without a connection are forgotten");
    }
}
