//! The kernels' PTX on a simulated device, against scalar code.

mod attention;
mod device;
mod experts;
mod linear;
mod mutants;
mod routing;
mod rows;
mod sampling;
mod traffic;
