//! Where a process is, as far as ranks can share memory.

use std::fs;
use std::os::unix::fs::MetadataExt as _;

/// Names the host of this process as far as memory can be shared on it: one boot of one kernel, one memory
/// file system, and one network, since containers that have networks of their own count as hosts of their
/// own.
pub fn host_identity() -> String {
    let boot = fs::read_to_string("/proc/sys/kernel/random/boot_id").unwrap_or_default();
    let network = fs::metadata("/proc/self/ns/net").map_or(0, |file| file.ino());
    let memory = fs::metadata("/dev/shm").map_or(0, |folder| folder.dev());
    format!("{}-{network:x}-{memory:x}", boot.trim())
}

/// Whether memory that this process makes can be shared with processes of `host`, whatever their network.
pub fn shares_memory_with(host: &str) -> bool {
    fn memory(host: &str) -> Option<(&str, &str)> {
        let mut parts = host.rsplitn(3, '-');
        let (memory, _network, boot) = (parts.next()?, parts.next()?, parts.next()?);
        Some((boot, memory))
    }
    memory(host).is_some_and(|other| Some(other) == memory(&host_identity()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn memory_is_shared_across_networks_and_not_across_file_systems() {
        let own = host_identity();
        assert!(shares_memory_with(&own));
        let (rest, memory) = own.rsplit_once('-').unwrap();
        let (boot, _) = rest.rsplit_once('-').unwrap();
        assert!(shares_memory_with(&format!("{boot}-ffff-{memory}")));
        assert!(!shares_memory_with(&format!("{rest}-ffff")));
        assert!(!shares_memory_with(&format!("other-1-{memory}")));
        assert!(!shares_memory_with("nowhere"));
    }
}
