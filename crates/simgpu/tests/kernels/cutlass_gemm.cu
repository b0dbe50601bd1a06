// Instantiates CUTLASS's sm_80 GEMM on tensor cores, and builds the parameters that its launch passes.
#include <cutlass/gemm/device/gemm.h>

using Element = ELEMENT;
using Gemm = cutlass::gemm::device::Gemm<
    Element, cutlass::layout::RowMajor, Element, cutlass::layout::ColumnMajor, float,
    cutlass::layout::RowMajor, float, cutlass::arch::OpClassTensorOp, cutlass::arch::Sm80,
    cutlass::gemm::GemmShape<64, 64, 32>, cutlass::gemm::GemmShape<32, 32, 32>,
    cutlass::gemm::GemmShape<16, 8, 16>,
    cutlass::epilogue::thread::LinearCombination<float, 4, float, float>,
    cutlass::gemm::threadblock::GemmIdentityThreadblockSwizzle<>, 3>;
using Kernel = Gemm::GemmKernel;

extern "C" __global__ void __launch_bounds__(Kernel::kThreadCount) gemm(Kernel::Params params) {
  extern __shared__ int dynamic[];
  Kernel kernel;
  kernel(params, *reinterpret_cast<Kernel::SharedStorage*>(dynamic));
}

extern "C" __global__ void gemm_params(
    Kernel::Params* params, int* shape, const Element* a, const Element* b, const float* c, float* d,
    int m, int n, int k) {
  cutlass::gemm::GemmCoord problem(m, n, k);
  Gemm::ThreadblockSwizzle swizzle;
  auto tiles = swizzle.get_tiled_shape(problem, {64, 64, 32}, 1);
  *params = Kernel::Params(
      problem, tiles, {const_cast<Element*>(a), k}, {const_cast<Element*>(b), k},
      {const_cast<float*>(c), n}, {d, n}, {1.0f, 0.0f}, nullptr, nullptr, nullptr, nullptr);
  shape[0] = sizeof(Kernel::Params);
  shape[1] = sizeof(Kernel::SharedStorage);
  shape[2] = Kernel::kThreadCount;
  shape[3] = tiles.m();
  shape[4] = tiles.n();
}
