// Entries that choose experts, list their rows and add up what they give, and that of their layers in float32.
#include "combine.cuh"
#include "experts.cuh"
#include "route.cuh"

using namespace oarlock;

extern "C" __global__ void __launch_bounds__(32 * ROUTE_WARPS) route_f32(const __grid_constant__ RouteParams p) { route(p); }

extern "C" __global__ void __launch_bounds__(PLAN_THREADS) expert_plan(const __grid_constant__ ExpertPlanParams p) { plan_experts(p); }

extern "C" __global__ void __launch_bounds__(F32_THREADS) experts_f32(const __grid_constant__ ExpertLinearParams p) { experts_float(p); }

extern "C" __global__ void __launch_bounds__(32 * MAX_RANGE) expert_combine_f32(const __grid_constant__ ExpertCombineParams p) { expert_combine(p); }
