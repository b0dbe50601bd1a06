//! The kernels' PTX on a simulated device, against scalar code.

mod attention;
mod device;
mod linear;
mod mutants;
mod rows;
mod sampling;
mod traffic;
