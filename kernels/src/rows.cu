// Entries of the operations that work row by row.
#include "activation.cuh"
#include "cache.cuh"
#include "embed.cuh"
#include "norm.cuh"

using namespace oarlock;

#define ENTRY(name, Params, body) \
    extern "C" __global__ void __launch_bounds__(256) name(const __grid_constant__ Params p) { body(p); }

ENTRY(embed_bf16, EmbedParams, embed<Bf16>)
ENTRY(embed_f32, EmbedParams, embed<float>)
ENTRY(gather_bf16, GatherParams, gather<Bf16>)
ENTRY(gather_f32, GatherParams, gather<float>)
ENTRY(add_rms_norm_bf16, AddRmsNormParams, add_rms_norm<Bf16>)
ENTRY(add_rms_norm_f32, AddRmsNormParams, add_rms_norm<float>)
ENTRY(rms_norm_f32, RmsNormParams, rms_norm)
ENTRY(head_rms_norm_bf16, HeadRmsNormParams, head_rms_norm<Bf16>)
ENTRY(head_rms_norm_f32, HeadRmsNormParams, head_rms_norm<float>)
ENTRY(gated_activation_bf16, GatedActivationParams, gated_activation<Bf16>)
ENTRY(gated_activation_f32, GatedActivationParams, gated_activation<float>)
ENTRY(soft_cap_f32, SoftCapParams, soft_cap)
ENTRY(add_bias_f32, AddBiasParams, add_bias)
ENTRY(rotary_kv_write_bf16, RotaryKvWriteParams, rotary_kv_write<Bf16>)
ENTRY(rotary_kv_write_f32, RotaryKvWriteParams, rotary_kv_write<float>)
ENTRY(copy_blocks, CopyBlocksParams, copy_block_pairs)
