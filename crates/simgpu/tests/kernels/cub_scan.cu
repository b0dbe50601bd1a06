// Instantiates CUB's device-wide scan (decoupled look-back) and the state that its launches pass.
#include <cub/device/device_scan.cuh>

using Input = const int*;
using Output = int*;
using State = cub::ScanTileState<int>;
using Init = cub::detail::InputValue<int>;
using Hub = cub::detail::scan::policy_hub<int, int, int, unsigned int, cuda::std::plus<>>;
using Policy = Hub::MaxPolicy;

template __global__ void cub::detail::scan::DeviceScanInitKernel<State>(State, int);
template __global__ void cub::detail::scan::DeviceScanKernel<
    Policy, Input, Output, State, cuda::std::plus<>, Init, unsigned int, int, false, int>(
    Input, Output, State, int, cuda::std::plus<>, Init, unsigned int);

// What the host would compute: tile items, threads of a block, bytes of the tile state.
extern "C" __global__ void scan_shape(int* out) {
  using Active = cub::detail::scan::policy_hub<int, int, int, unsigned int, cuda::std::plus<>>::Policy800;
  out[0] = Active::ScanPolicyT::BLOCK_THREADS;
  out[1] = Active::ScanPolicyT::ITEMS_PER_THREAD;
  out[2] = sizeof(State);
  out[3] = sizeof(Init);
}

extern "C" __global__ void scan_init_value(Init* out, int value) { *out = Init(value); }
