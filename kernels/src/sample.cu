// Entries of log-sum-exp and sampling.
#include "sample.cuh"

using namespace oarlock;

extern "C" __global__ void __launch_bounds__(LOGIT_THREADS) logit_stats_f32(const __grid_constant__ LogitStatsParams p) { logit_stats(p); }

extern "C" __global__ void __launch_bounds__(SAMPLE_THREADS, 1) sample_f32(const __grid_constant__ SampleParams p) { sample(p); }
