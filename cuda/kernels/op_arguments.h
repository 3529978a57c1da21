// What hosts hand to the kernels beside the recurrent ones, and their handles. Plain data, for any compiler; arrays
// are contiguous and of the type T of the entries unless it is said.
#pragma once

#include "kernels/table.h"
#include "layers/layer_table.h"

namespace fusedrnn::cuda {

inline constexpr int kOpThreads = 256;  // of a block

struct LayerNormArgs {
    std::int64_t n, dim;
    const void *x, *w, *b;  // (n, dim); w and b (dim) may be null
    double eps;
    void *y, *mean, *rstd;  // (n, dim), (n, 2)
};

struct LayerNormBackwardArgs {
    std::int64_t n, dim;
    const void *x, *w, *dy, *mean, *rstd;
    void *dx, *dw, *db;  // dw and db (dim) are added to, and may be null
};

struct CrossEntropyRowsArgs {
    CrossEntropyArgs<void> rows;
    double share_sum;  // what smoothing spreads over all classes
};

struct SgdArgs {
    std::int64_t n;
    void* param;
    const void* grad;
    void* momentum_buf;  // null without momentum
    SgdOptions options;
};

struct AdamArgs {
    std::int64_t n;
    void* param;
    const void* grad;
    void *exp_avg, *exp_avg_sq;
    AdamOptions options;
    double first_bias, second_bias;  // AdamBias
    std::uint8_t* overflowed;        // one: set where a square overflows
};

struct OpEntries {
    Entry<LayerNormArgs> layer_norm;                   // a block for each row
    Entry<LayerNormBackwardArgs> layer_norm_backward;  // the same
    Entry<LayerNormBackwardArgs> layer_norm_columns;   // a block for 32 columns
    Entry<CrossEntropyRowsArgs> cross_entropy;         // a block for each row
    Entry<SgdArgs> sgd;                                // a thread for each element
    Entry<AdamArgs> adam;
};

// Of float32 in `ieee`, of float64 in `f64`.
const OpEntries& op_entries(Math math);

}  // namespace fusedrnn::cuda
