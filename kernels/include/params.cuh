// What the host hands to the kernels: every entry takes exactly one of these structs, by value.
//
// `crates/backend-cuda/src/kernels/params.rs` mirrors them field by field (a test compares sizes).
// Pointers are device pointers; [..] in a comment is a row-major shape; T is the entry's working type.
#pragma once

#include <stdint.h>

namespace oarlock {

// Tokens of one block of the KV cache.
constexpr uint32_t BLOCK_TOKENS = 16;
// Positions of one part of a context; every part starts from an empty state.
constexpr uint32_t PART_POSITIONS = 256;
// Query rows (token, head of the group) of one warp of attention: the M of mma.m16n8k16.
constexpr uint32_t TILE_PAIRS = 16;
// Logits of one segment of the log-sum-exp, as in crates/sampler.
constexpr uint32_t SEGMENT_LOGITS = 1024;
// Columns of one step of the bfloat16 linear kernels; every segment is padded to whole steps.
constexpr uint32_t STEP_COLUMNS = 64;
// Experts of a layer, and of one row, at most.
constexpr uint32_t MAX_EXPERTS = 1024;
constexpr uint32_t MAX_TOP_K = 32;
// Outputs of one tile of packed weights.
constexpr uint32_t TILE_OUTPUTS = 16;

struct EmbedParams {
    float *out;                // [rows, width]
    const void *table;         // [table_rows, width] of T
    const uint32_t *tokens;    // [rows]
    const uint32_t *num_rows;  // [1]
    uint32_t width;
    uint32_t first_token;      // token of the table's first row
    uint32_t table_rows;
    float scale;
};

struct AddRmsNormParams {
    void *out;                 // [rows, width] of T
    float *residual;           // [rows, width]
    const float *delta;        // [rows, width] or null
    const float *weight;       // [width]
    const uint32_t *num_rows;  // [1]
    uint32_t width;
    float eps;
};

struct RmsNormParams {
    float *values;             // [rows, width]
    const float *weight;       // [width]
    const uint32_t *num_rows;  // [1]
    uint32_t width;
    float eps;
};

struct HeadRmsNormParams {
    void *qkv;                  // [rows, (num_heads + 2 num_kv_heads) head_dim] of T
    const float *query_weight;  // [head_dim]
    const float *key_weight;    // [head_dim]
    const uint32_t *num_rows;   // [1]
    uint32_t num_heads;
    uint32_t num_kv_heads;
    uint32_t head_dim;
    float eps;
};

struct LinearParams {
    void *out;                 // [rows, outputs] with out_stride, float32 or T
    const void *input;         // [rows, columns] of T
    const void *weight;        // packed values or quants (kernels/README.md)
    const void *scales;        // Q8_0: f16 per 32 columns; Q4_K: f16 pairs (d, dmin) per 256; else null
    const void *sub_scales;    // Q4_K: 6-bit scales and minimums; else null
    const float *bias;         // [outputs] or null
    const uint32_t *num_rows;  // [1]
    uint32_t outputs;
    uint32_t columns;          // inner width, of all segments
    uint32_t segments;         // 1, 2, 4 or 8 equal ranges of the columns
    uint32_t first_sub_block;  // Q4_K: place of column 0 in its super-block, in units of 32
    uint32_t out_is_float;     // 1: out is float32, 0: T
    uint32_t out_stride;       // values from one row of out to the next; 0: outputs
};

// What `route_f32` takes the experts of rows from: a router's logits come in parts that add up.
struct RouteParams {
    uint32_t *experts;         // [rows, top_k]: the chosen ones, ascending
    float *weights;            // [rows, top_k]: theirs
    const float *logits;       // [rows, parts, num_experts]
    const uint32_t *num_rows;  // [1]
    uint32_t parts;            // 1, 2 or 3
    uint32_t num_experts;      // at most 1,024
    uint32_t top_k;            // at most 32
    uint32_t normalize;        // 0: weights are a softmax over all experts; 1: over the chosen ones
};

// Rows of one expert that a block of threads multiplies: assignments first..first + count of the list.
struct ExpertTile {
    uint32_t expert;
    uint32_t first;
    uint32_t count;    // at most the plan's tile_rows; 0: nothing to do
    uint32_t padding;
};

// An assignment is a row with one of its experts; the list has them by expert, then by row.
struct ExpertPlanParams {
    uint32_t *rows;            // [assignments]: the row of each
    uint32_t *places;          // [rows, top_k]: where in the list a row's choices are
    ExpertTile *tiles;         // [counts[1]], in order of experts
    uint32_t *counts;          // [2]: assignments, tiles
    const uint32_t *experts;   // [rows, top_k], of `route_f32`
    const uint32_t *num_rows;  // [1]
    uint32_t num_experts;
    uint32_t top_k;
    uint32_t tile_rows;
    uint32_t padding;
};

struct ExpertLinearParams {
    LinearParams linear;        // of expert 0, one row for each assignment; num_rows and bias are not read
    const uint32_t *rows;       // [assignments]: rows of the input; null: assignments are
    const ExpertTile *tiles;    // [num_tiles]
    const uint32_t *num_tiles;  // [1]
    uint64_t weight_bytes;      // from one expert to the next
    uint64_t scale_bytes;
    uint64_t sub_scale_bytes;
    uint64_t segment_values;    // from one segment's sums in linear.out to the next's
    uint32_t first_segment;     // segments first_segment..end_segment are summed, each from zero
    uint32_t end_segment;
};

struct ExpertCombineParams {
    float *out;                // [rows, hidden]
    float *pending;            // [levels, level_values]; null where there is one range
    const float *sums;         // [segments of the range, segment_values]: [assignments, hidden] each
    const uint32_t *places;    // [rows, top_k]: assignments
    const float *weights;      // [rows, top_k]
    const uint32_t *num_rows;  // [1]
    uint64_t segment_values;
    uint64_t level_values;
    uint32_t hidden;
    uint32_t top_k;            // at most 32
    uint32_t range;            // which of the equal ranges of segments, one after the other
    uint32_t ranges;           // 1, 2, 4 or 8
};

struct SoftCapParams {
    float *values;             // [rows, width]
    const uint32_t *num_rows;  // [1]
    uint32_t width;
    float cap;
};

struct AddBiasParams {
    float *values;             // [rows, width]
    const float *bias;         // [width]
    const uint32_t *num_rows;  // [1]
    uint32_t width;
    uint32_t padding;
};

struct GatherParams {
    void *out;                 // [gathered, width] of T
    const void *input;         // [rows, width] of T
    const uint32_t *rows;      // [gathered]: which rows
    const uint32_t *num_rows;  // [1]: gathered
    uint32_t width;
    uint32_t padding;
};

struct RotaryKvWriteParams {
    void *qkv;                           // [rows, (num_heads + 2 num_kv_heads) head_dim] of T
    void *cache;                         // [blocks, num_kv_heads, 2, 16, head_dim] of T: one layer
    const float *cosines;                // [positions, half]
    const float *sines;                  // [positions, half]
    const uint32_t *positions;           // [rows]
    const uint32_t *first_table_entry;   // [rows]: where the row's block table starts in `tables`
    const uint32_t *tables;              // block tables, one after the other
    const uint32_t *num_rows;            // [1]
    uint32_t num_heads;
    uint32_t num_kv_heads;
    uint32_t head_dim;
    uint32_t half;                       // pairs, a multiple of 4: a head's first 2 half elements
    uint32_t interleaved;                // 0: i with i + half; 1: 2 i with 2 i + 1
    uint32_t padding;
};

struct GatedActivationParams {
    void *out;                 // [rows, width] of T
    const void *gate_up;       // [rows, 2 width] of T
    const uint32_t *num_rows;  // [1]
    uint32_t width;
    uint32_t activation;       // 0: SiLU, 1: GELU by tanh
};

// Work of one CTA (times KV heads) of attention. Query rows are pairs (token, head of the group),
// numbered token by token: pair i is head (first_head + i) % group of row
// first_row + (first_head + i) / group, whose position is first_position + the same quotient.
struct AttentionItem {
    uint32_t first_row;
    uint32_t first_head;         // head in the group of pair 0
    uint32_t num_pairs;          // 1..=16 (entries *_w1) or 1..=64 (*_w4)
    uint32_t first_table_entry;  // of the sequence's block table in `tables`
    uint32_t first_position;     // of first_row
    uint32_t first_part;         // parts first_part..end_part are walked
    uint32_t end_part;
    uint32_t first_slot;         // WHOLE: parts are joined here and `out` is written; else the
                                 // state of part first_part + i of pairs 16 w.. goes to slot
                                 // first_slot + i * warps + w
};
constexpr uint32_t WHOLE = 0xffffffffu;

// States of several parts to be joined and written; pairs as in AttentionItem.
struct AttentionJoin {
    uint32_t first_row;
    uint32_t first_head;
    uint32_t num_pairs;       // 1..=16
    uint32_t first_position;
    uint32_t first_part;
    uint32_t num_parts;
    uint32_t first_slot;      // of part first_part
    uint32_t slot_stride;     // from one part to the next
};

struct AttentionParams {
    void *out;                   // [rows, num_heads head_dim] of T
    const void *qkv;             // [rows, (num_heads + 2 num_kv_heads) head_dim] of T, rotated
    const void *cache;           // [blocks, num_kv_heads, 2, 16, head_dim] of T: one layer
    float *workspace;            // [slots, num_kv_heads]: value sums [16, head_dim], max and sum [16, 2]
    const uint32_t *tables;      // block tables, one after the other
    const AttentionItem *items;  // [num_items]
    const uint32_t *num_items;   // [1]
    uint32_t num_heads;
    uint32_t num_kv_heads;
    uint32_t head_dim;
    uint32_t window;             // 0: none
    float scale;
    float soft_cap;              // 0: none
    float inverse_soft_cap;      // 1 / soft_cap
    uint32_t padding;
};

struct AttentionJoinParams {
    void *out;                   // [rows, num_heads head_dim] of T
    const float *workspace;      // [slots, num_kv_heads]: [16, head_dim], [16, 2]
    const AttentionJoin *joins;  // [num_joins]
    const uint32_t *num_joins;   // [1]
    uint32_t num_heads;
    uint32_t num_kv_heads;
    uint32_t head_dim;
    uint32_t window;             // 0: none
};

struct CopyBlocksParams {
    void *cache;                // [layers, blocks, block_bytes]
    const uint32_t *pairs;      // [num_pairs, 2]: from, to; no block is in two pairs
    const uint32_t *num_pairs;  // [1]
    uint64_t block_bytes;       // of one layer, a multiple of 16
    uint64_t layer_bytes;       // from one layer to the next
};

// What crates/sampler's `segment_stats` gives, and where the greatest logit is.
struct SegmentStats {
    float max;
    float sum;
    uint32_t best;  // lowest id of `max`; WHOLE where the segment has no number
    uint32_t padding;
};

struct LogitStatsParams {
    SegmentStats *stats;       // [rows, ceil(vocabulary / 1024)]
    const float *logits;       // [rows, vocabulary]
    const uint32_t *num_rows;  // [1]
    uint32_t vocabulary;
    uint32_t padding;
};

enum SampleKind : uint32_t { SAMPLE_GREEDY = 0, SAMPLE_DRAW = 1, SAMPLE_SCORE = 2, SAMPLE_NOTHING = 3 };

struct SampleRequest {
    uint64_t random;      // random bits of the draw (`random_bits` of crates/sampler)
    uint64_t top_p;       // share times 2^32, truncated; 2^32 or more keeps all
    uint64_t min_p;       // the same; 0 keeps all
    float temperature;    // greater than 0, for draws
    uint32_t top_k;       // 0: all
    uint32_t kind;        // SampleKind; SAMPLE_NOTHING rows are left alone (the host does them)
    uint32_t token;       // the token to score
    uint32_t with_score;  // whether log-sum-exp, rank and top tokens are wanted
    uint32_t num_top;     // at most max_top
};

enum SampleStatus : uint32_t { SAMPLE_OK = 0, SAMPLE_INVALID_LOGITS = 1 };

struct SampleResult {
    uint32_t status;  // SampleStatus
    uint32_t token;   // drawn or scored
    float log_sum_exp;
    float logit;      // of the token
    uint32_t rank;    // from 1
    uint32_t num_top; // entries of top_ids and top_logits that count
};

struct SampleParams {
    SampleResult *results;          // [rows]
    uint32_t *top_ids;              // [rows, max_top]: best first
    float *top_logits;              // [rows, max_top]
    const float *logits;            // [rows, vocabulary]
    const SegmentStats *stats;      // [rows, ceil(vocabulary / 1024)]
    const SampleRequest *requests;  // [rows]
    const uint32_t *num_rows;       // [1]
    uint32_t vocabulary;            // at most 2^19 - 1
    uint32_t max_top;
};

// The mirrors have these sizes, too.
static_assert(sizeof(EmbedParams) == 48, "");
static_assert(sizeof(AddRmsNormParams) == 48, "");
static_assert(sizeof(RmsNormParams) == 32, "");
static_assert(sizeof(HeadRmsNormParams) == 48, "");
static_assert(sizeof(LinearParams) == 80, "");
static_assert(sizeof(RouteParams) == 48, "");
static_assert(sizeof(ExpertTile) == 16, "");
static_assert(sizeof(ExpertPlanParams) == 64, "");
static_assert(sizeof(ExpertLinearParams) == 144, "");
static_assert(sizeof(ExpertCombineParams) == 80, "");
static_assert(sizeof(SoftCapParams) == 24, "");
static_assert(sizeof(AddBiasParams) == 32, "");
static_assert(sizeof(GatherParams) == 40, "");
static_assert(sizeof(RotaryKvWriteParams) == 88, "");
static_assert(sizeof(GatedActivationParams) == 32, "");
static_assert(sizeof(AttentionItem) == 32, "");
static_assert(sizeof(AttentionJoin) == 32, "");
static_assert(sizeof(AttentionParams) == 88, "");
static_assert(sizeof(AttentionJoinParams) == 48, "");
static_assert(sizeof(CopyBlocksParams) == 40, "");
static_assert(sizeof(SegmentStats) == 16, "");
static_assert(sizeof(LogitStatsParams) == 32, "");
static_assert(sizeof(SampleRequest) == 48, "");
static_assert(sizeof(SampleResult) == 24, "");
static_assert(sizeof(SampleParams) == 64, "");

}  // namespace oarlock
