// Instantiates CUB's block-wide scan, reduction and radix sort, and its warp-wide ones.
#include <cub/block/block_radix_sort.cuh>
#include <cub/block/block_reduce.cuh>
#include <cub/block/block_scan.cuh>
#include <cub/warp/warp_reduce.cuh>

template <cub::BlockScanAlgorithm Algorithm, int Threads, int Items>
__device__ void scan(const int* in, int* out) {
  using Scan = cub::BlockScan<int, Threads, Algorithm>;
  __shared__ typename Scan::TempStorage storage;
  int items[Items];
  for (int i = 0; i < Items; ++i) items[i] = in[(blockIdx.x * Threads + threadIdx.x) * Items + i];
  Scan(storage).ExclusiveSum(items, items);
  for (int i = 0; i < Items; ++i) out[(blockIdx.x * Threads + threadIdx.x) * Items + i] = items[i];
}

extern "C" __global__ void scan_raking(const int* in, int* out) {
  scan<cub::BLOCK_SCAN_RAKING, 128, 4>(in, out);
}
extern "C" __global__ void scan_warps(const int* in, int* out) {
  scan<cub::BLOCK_SCAN_WARP_SCANS, 96, 3>(in, out);
}

template <cub::BlockReduceAlgorithm Algorithm, int Threads, typename T>
__device__ void reduce(const T* in, T* out) {
  using Reduce = cub::BlockReduce<T, Threads, Algorithm>;
  __shared__ typename Reduce::TempStorage storage;
  T sum = Reduce(storage).Sum(in[blockIdx.x * Threads + threadIdx.x]);
  if (threadIdx.x == 0) out[blockIdx.x] = sum;
}

extern "C" __global__ void reduce_raking(const int* in, int* out) {
  reduce<cub::BLOCK_REDUCE_RAKING, 160>(in, out);
}
extern "C" __global__ void reduce_warps(const float* in, float* out) {
  reduce<cub::BLOCK_REDUCE_WARP_REDUCTIONS, 128>(in, out);
}

extern "C" __global__ void sort_pairs(const unsigned* keys_in, const int* values_in, unsigned* keys, int* values) {
  using Sort = cub::BlockRadixSort<unsigned, 128, 4, int>;
  __shared__ typename Sort::TempStorage storage;
  unsigned key[4];
  int value[4];
  int first = (blockIdx.x * 128 + threadIdx.x) * 4;
  for (int i = 0; i < 4; ++i) {
    key[i] = keys_in[first + i];
    value[i] = values_in[first + i];
  }
  Sort(storage).Sort(key, value);
  for (int i = 0; i < 4; ++i) {
    keys[first + i] = key[i];
    values[first + i] = value[i];
  }
}
