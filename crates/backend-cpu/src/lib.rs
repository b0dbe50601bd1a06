//! The CPU backend: packed weights, int8 and BF16 kernels per instruction set, its own threads.
