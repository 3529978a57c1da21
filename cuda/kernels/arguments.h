// What the drivers hand to the kernels. Plain data, for any compiler: a kernel knows the types of its
// elements (T and C of problem.h), its caller does not have to.
//
// "Position" is a row's place in the order of descending length; `order` is null where it is the row itself.
#pragma once

#include <cstdint>

#include "cpu/kernels.h"
#include "device/types.h"
#include "problem.h"

namespace fusedrnn::cuda {

// ---- products of matrices ------------------------------------------------------------------------------

// Which of A (M, K) and B (K, N) are stored with K as their last axis: A in kNT and kNN, B in kNT.
enum class Layout : int { kNT, kNN, kTN };
inline constexpr int kLayoutCount = 3;

// C (M, N) = A B + bias, or added to C. Blocks (m, n, slice) of the grid; each slice of K has its own sum.
struct GemmArgs {
    const void *a, *b;    // T
    void* c;              // C, or T in kNN
    const void* bias[2];  // T (N); null: none
    void* partial;        // C [slices][M][N], where there is more than one slice
    std::int64_t m, n, k, slice;
    std::int64_t lda, ldb, ldc;
    bool accumulate;
    bool vector_a, vector_b;  // whether all their rows start at multiples of 16 bytes
};

// C = the sum of the slices in their order + bias, or added to C.
struct SumSlicesArgs {
    const void* partial;  // C [slices][M][N]
    void* c;              // as in GemmArgs
    const void* bias[2];
    std::int64_t m, n, ldc;
    int slices;
    bool accumulate;
};

// Sums of the columns of a (M, N) matrix, slice by slice of its rows, which are `stride` elements apart.
struct ColumnSumsArgs {
    const void* a;  // T
    void* partial;  // C [slices][N]
    std::int64_t m, n, stride, slice;
    bool vector;  // whether all rows start and end at multiples of 16 bytes
};

// to (N, M) = from (M, N) transposed.
struct TransposeArgs {
    const void* from;  // T
    void* to;
    std::int64_t m, n;
};

// ---- one step ------------------------------------------------------------------------------------------

struct StepForwardArgs {
    const void *w_hh, *b_hh;  // b_hh: only where the gates are split; may be null
    const void* product;      // C [position][G*H]: W_hh h, made before; null: made here
    const void* gx;           // C [position][G*H]
    StateSource source;
    TimeStep now;
    const void* states_before;  // C [position][kStates - 1][H]
    const std::int64_t* order;
    void* hidden;  // T: h after the step, at `hidden_stride` times the row, or the position
    std::int64_t hidden_stride;
    bool hidden_by_position;
    void* states;  // C [position][kStates - 1][H]; may be states_before
    void* saved;   // C [position][H][kSaved], or null
    int rows;
};

// out (row of the batch, M) = rows (position, K) w (M, K)^T.
struct ProjectArgs {
    const void *w, *rows;  // T
    void* out;             // T, at out_stride times the row
    std::int64_t out_stride;
    const std::int64_t* order;
    int m, k, count;
};

struct StepBackwardArgs {
    // The product that gives the gradient of h: `product_rows` [position][k] times `product_w` [unit][k].
    // Without a projection: dgh of the step later in the pass and W_hh^T; with one: the gradient of this
    // step's output and W_hr^T.
    const void *product_w, *product_rows;  // T
    const void* product;                   // C [position][H]: it, made before; null: made here
    int k;
    bool projected;
    StateSource source;
    TimeStep now, later;
    const void* states_before;  // C [position][kStates - 1][H]
    const std::int64_t* order;
    int rows, later_rows;  // alive now and at the later step
    const void* dy;        // T, at dy_stride times the row; null: zero
    std::int64_t dy_stride;
    const void* dfinal[kMaxStates];
    void* dinitial[kMaxStates];  // of the rows that are alive at the later step and not now
    const void* saved;           // C [position][H][kSaved]
    void* carry;                 // C [position][kStates][H]: in, of the later step; out, of this one
    void *dgx, *dgh;             // T [position][G*H]; the same where the gates are not split
};

// With a projection: the gradient of the output, dout (position, P) = dy + dgh (of the later step) W_hh.
struct OutputGradientArgs {
    const void *w_hh_t, *dgh;  // T [P][k], [position][k]
    int k;
    StateSource source;
    TimeStep later;
    const std::int64_t* order;
    int rows, later_rows;
    const void* dy;
    std::int64_t dy_stride;
    const void* dfinal;  // T (B, P)
    void* dinitial;      // T (B, P)
    void* dout;          // T [position][P]
};

// ---- rows of sequences ---------------------------------------------------------------------------------

// The device's copy of a schedule (see cpu/kernels.h); null arrays where all rows are T long and stay in
// place.
struct DeviceSchedule {
    const std::int64_t *order, *active, *offset, *length;
    std::int64_t T, B;
};

// Between a (T, B, n) array and the rows that are alive, by compact index from step `first` on. Blocks (step,
// rows).
struct RowsArgs {
    DeviceSchedule schedule;
    std::int64_t first;
    ConstRows from;  // gather
    Rows to;         // scatter, clear
    void* compact;   // T [rows][n]
    std::int64_t n;
    bool accumulate;  // scatter: added to `to`
};

// The rows of a table that inputs are, by compact index from step `first` on. Blocks (step, rows).
struct LookupArgs {
    DeviceSchedule schedule;
    std::int64_t first;
    const std::int64_t* index;  // (T, B)
    const void* from;           // (V, n)
    std::int64_t from_stride;
    void* to;  // [rows][n]
    std::int64_t n;
};

// to (V, n) = the sums of the rows of equal inputs, or added to it: those of row v of the table are
// inputs[first[v]] to inputs[first[v + 1] - 1]. Blocks (row of the table, tile of 32 columns).
struct SumLookupsArgs {
    const std::int64_t *first, *inputs;
    const void* from;  // T [rows][n]
    void* to;          // T
    std::int64_t to_stride, n;
    bool accumulate;
};

// The hidden states before the steps, as RowsArgs gathers them.
struct GatherHiddenArgs {
    DeviceSchedule schedule;
    std::int64_t first;
    StateSource source;
    void* compact;  // T [rows][P]
};

// The cells of a block of steps once more. Rows by compact index, gates and `saved` from step `first` on.
struct RecomputeArgs {
    DeviceSchedule schedule;
    std::int64_t first;
    StateSource source;
    const void *gx, *gh;  // C [rows][G*H]: both products, or in gx their sum where the gates are not split
    const void* states;   // C [rows][kStates - 1][H], of all steps
    void* saved;          // C [rows][H][kSaved]
};

// The state after each row's last step, or what was given for a row without one. Blocks (row, state).
struct FinalStateArgs {
    DeviceSchedule schedule;
    ConstRows y;
    const void* states;    // C [row][kStates - 1][H]
    bool states_by_index;  // rows of `states` are compact indices (a tape), else positions
    const void* initial[kMaxStates];
    void* final[kMaxStates];
    std::int64_t H, P;
    int beyond;  // kStates - 1
    bool reverse;
    bool only_empty;  // only the rows without a step
};

// ---- elements ------------------------------------------------------------------------------------------

struct RoundArgs {
    const float* from;
    void* to;  // T
    std::int64_t n;
};

// y = x scale where the element's word of Philox reaches the threshold, else 0.
struct DropoutArgs {
    const void* x;  // T
    void* y;        // T
    std::int64_t n;
    std::uint64_t threshold, seed, offset;
    double scale;
};

}  // namespace fusedrnn::cuda
