//! See `oarlock_fuzz::http`.
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| oarlock_fuzz::http(data));
