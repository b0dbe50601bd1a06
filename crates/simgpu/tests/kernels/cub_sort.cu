// Instantiates CUB's device-wide radix sort (onesweep).
#include <cub/device/device_radix_sort.cuh>

using Key = unsigned int;
using Value = int;
using Offset = unsigned int;
using Policy = cub::detail::radix::policy_hub<Key, Value, Offset>::MaxPolicy;
using Active = cub::detail::radix::policy_hub<Key, Value, Offset>::Policy800;
constexpr auto ascending = cub::SortOrder::Ascending;

template __global__ void cub::detail::radix_sort::DeviceRadixSortHistogramKernel<Policy, ascending, Key, Offset>(
    Offset*, const Key*, Offset, int, int, cub::detail::identity_decomposer_t);
template __global__ void cub::detail::radix_sort::DeviceRadixSortExclusiveSumKernel<Policy, Offset>(Offset*);
template __global__ void
cub::detail::radix_sort::DeviceRadixSortOnesweepKernel<Policy, ascending, Key, Value, Offset, int, int>(
    int*, int*, Offset*, const Offset*, Key*, const Key*, Value*, const Value*, int, int, int,
    cub::detail::identity_decomposer_t);

extern "C" __global__ void sort_shape(int* out) {
  out[0] = Active::HistogramPolicy::BLOCK_THREADS;
  out[1] = Active::HistogramPolicy::ITEMS_PER_THREAD;
  out[2] = Active::ExclusiveSumPolicy::BLOCK_THREADS;
  out[3] = Active::OnesweepPolicy::BLOCK_THREADS;
  out[4] = Active::OnesweepPolicy::ITEMS_PER_THREAD;
  out[5] = Active::OnesweepPolicy::RADIX_BITS;
}
