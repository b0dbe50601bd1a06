//! The CUDA backend: what `kernels/` holds, built for real devices and called through the driver.
//!
//! [`kernels`] says which entries there are, with the structs they take and their launch geometry;
//! [`pack`] turns weights into the kernels' layouts. Both are plain Rust, tested without a device.

pub mod kernels;
pub mod pack;
