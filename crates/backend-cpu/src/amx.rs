//! AMX tiles: asking the kernel for them.

/// Whether the CPU has AMX tiles with int8 and bfloat16, and Linux lets this process use them.
pub(crate) fn request_tiles() -> bool {
    false
}
