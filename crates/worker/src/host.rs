//! Who and where a worker is.

use std::fs;
use std::os::unix::fs::MetadataExt as _;

use oarlock_types::WorkerIdentity;

/// Names the host as far as memory can be shared on it: one boot of one kernel, one memory file system,
/// and one network, since containers that have networks of their own count as hosts of their own.
pub(crate) fn identity() -> WorkerIdentity {
    let boot = fs::read_to_string("/proc/sys/kernel/random/boot_id").unwrap_or_default();
    let network = fs::metadata("/proc/self/ns/net").map_or(0, |file| file.ino());
    let memory = fs::metadata("/dev/shm").map_or(0, |folder| folder.dev());
    let host = format!("{}-{network:x}-{memory:x}", boot.trim());
    WorkerIdentity { host, pid: std::process::id() }
}
