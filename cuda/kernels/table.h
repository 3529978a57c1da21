// Handles of the compiled kernels of one math mode, for hosts that do not compile kernels. A .cu file in
// cuda/instances makes each; kernel_entries() finds them.
#pragma once

#include <vector>

#include "kernels/arguments.h"

namespace fusedrnn::cuda {

template <class Args>
struct Entry {
    const char* name;
    void (*kernel)(Args);
    int shared_bytes;  // dynamic shared memory of a block
};

// The forms that a step's kernel comes in.
enum class StepForm : int {
    any,     // blocks of 8 columns of the batch
    vector,  // the same, where all rows that are multiplied start and end at multiples of 16 bytes
    wide,    // that, in blocks of 8 * kWideTiles columns; on the tensor cores only
};
inline constexpr int kStepForms = 3;
inline constexpr const char* kStepFormNames[kStepForms] = {"any", "vector", "wide"};
inline constexpr int kWideTiles = 4;

template <class Args>
struct StepEntry : Entry<Args> {  // kernel null: there is no such form
    int warp_bytes;               // shared memory of each warp, besides shared_bytes
    int least_warps, most_warps;
};

// A cell's kernels in the family `step`.
struct StepCell {
    const char* name;
    CellTraits traits;
    StepEntry<StepForwardArgs> forward[kStepForms];
    StepEntry<StepBackwardArgs> backward[kStepForms];
    Entry<RecomputeArgs> recompute;
};

struct MathEntries {
    std::vector<StepCell> cells;
    StepEntry<ProjectArgs> project[kStepForms];
    StepEntry<OutputGradientArgs> output_gradient[kStepForms];
    int chunk;      // elements of K that kernels take at once
    int gemm_tile;  // rows and columns of a block's result
    Entry<GemmArgs> gemm[kLayoutCount];
    Entry<SumSlicesArgs> sum_slices[kLayoutCount];
    Entry<ColumnSumsArgs> column_sums;
    Entry<TransposeArgs> transpose;
    Entry<RowsArgs> gather_rows, scatter_rows, clear_padding;
    Entry<LookupArgs> look_up_inputs, look_up_gates;
    Entry<SumLookupsArgs> sum_lookups;
    Entry<GatherHiddenArgs> gather_hidden;
    Entry<FinalStateArgs> final_state;
    Entry<RoundArgs> round;  // to 16 bits; null in modes of others
    Entry<DropoutArgs> dropout;
};

const MathEntries& kernel_entries(Math math);

}  // namespace fusedrnn::cuda
