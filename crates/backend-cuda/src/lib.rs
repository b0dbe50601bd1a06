//! The CUDA backend: what `kernels/` holds, built for real devices and called through the driver.
//!
//! [`CudaDevice`] opens a device and loads the kernels, [`CudaBackend`] is the `Backend` on it. [`kernels`]
//! says which entries there are, with the structs they take and their launch geometry; [`pack`] turns
//! weights into the kernels' layouts; both are plain Rust, tested without a device. `driver` has the
//! driver's handles, and all unsafe code.
//!
//! Absent on purpose: models, other ranks, the choice of a device.

mod attention;
mod backend;
mod device;
#[expect(
    unsafe_code,
    reason = "the driver's C interface: handles and addresses that it gave, each block says why it holds"
)]
mod driver;
mod experts;
pub mod kernels;
mod operations;
pub mod pack;
mod sampling;
mod step;
mod tensor;
mod upload;
mod weight;

pub use backend::CudaBackend;
pub use device::CudaDevice;
pub use driver::{CudaError, DeviceInfo, check_device, device_count};
pub use experts::{CudaExperts, CudaRouting};
pub use kernels::{HAS_KERNELS, WorkType};
pub use tensor::{CudaKvCache, CudaRotary, CudaTable, CudaTensor, CudaVector};
pub use weight::CudaWeight;
