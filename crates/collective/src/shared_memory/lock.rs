//! Locks on single bytes of a file, which the system releases when their holder dies, however it dies.
//!
//! They belong to an open file description, not to a process, so that ranks may also be threads of one
//! process, and so that closing another descriptor of the file releases nothing.

#![expect(unsafe_code, reason = "rustix has no locks of open file descriptions")]

use std::fs::File;
use std::io;
use std::os::fd::AsRawFd as _;

/// Takes the byte's lock, unless someone else has it.
pub(super) fn try_lock(file: &File, byte: u32) -> io::Result<bool> {
    match control(file, libc::F_OFD_SETLK, &mut description(byte)) {
        Ok(()) => Ok(true),
        Err(error) if matches!(error.raw_os_error(), Some(libc::EAGAIN | libc::EACCES)) => {
            Ok(false)
        }
        Err(error) => Err(error),
    }
}

/// Does someone else hold the byte's lock?
pub(super) fn is_held(file: &File, byte: u32) -> io::Result<bool> {
    let mut lock = description(byte);
    control(file, libc::F_OFD_GETLK, &mut lock)?;
    Ok(lock.l_type != libc::F_UNLCK as libc::c_short)
}

fn description(byte: u32) -> libc::flock {
    libc::flock {
        l_type: libc::F_WRLCK as libc::c_short,
        l_whence: libc::SEEK_SET as libc::c_short,
        l_start: libc::off_t::from(byte),
        l_len: 1,
        // The system demands zero here.
        l_pid: 0,
    }
}

fn control(file: &File, command: libc::c_int, lock: &mut libc::flock) -> io::Result<()> {
    // SAFETY: the descriptor is open for as long as `file` lives, and both commands take a pointer to a
    // whole `flock`, which the system reads and may write.
    let result = unsafe { libc::fcntl(file.as_raw_fd(), command, std::ptr::from_mut(lock)) };
    if result == -1 { Err(io::Error::last_os_error()) } else { Ok(()) }
}
