// Instantiates CUB's device-wide reduction, and builds the work split that its launches pass.
#include <cub/device/device_reduce.cuh>

using Offset = unsigned int;
using Plus = cuda::std::plus<>;
using Hub = cub::detail::reduce::policy_hub<int, Offset, Plus>;
using Policy = Hub::MaxPolicy;
using Active = Hub::Policy600;
using Identity = cuda::std::identity;
using Share = cub::GridEvenShare<Offset>;

template __global__ void
cub::detail::reduce::DeviceReduceKernel<Policy, const int*, Offset, Plus, int, Identity>(
    const int*, int*, Offset, Share, Plus, Identity);
template __global__ void
cub::detail::reduce::DeviceReduceSingleTileKernel<Policy, int*, int*, int, Plus, int, int, Identity>(
    int*, int*, int, Plus, int, Identity);

extern "C" __global__ void reduce_share(Share* share, int* out, Offset items, int max_blocks) {
  Share local;
  local.DispatchInit(items, max_blocks, Active::ReducePolicy::BLOCK_THREADS * Active::ReducePolicy::ITEMS_PER_THREAD);
  *share = local;
  out[0] = Active::ReducePolicy::BLOCK_THREADS;
  out[1] = Active::SingleTilePolicy::BLOCK_THREADS;
  out[2] = local.grid_size;
  out[3] = sizeof(Share);
}
