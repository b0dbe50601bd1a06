//! See `oarlock_fuzz::template`.
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| oarlock_fuzz::template(data));
