// The cost model: how many threads a call deserves and along what it is split. The only place that decides.
#pragma once

#include "cpu/kernels.h"

namespace fusedrnn {

// kRows: each member runs the whole time loop for its own rows of the batch and meets the others only for the weight
// gradients. kUnits: each member owns a range of hidden units for all rows and meets the others after every step.
enum class Split { kRows, kUnits };

// Members that a recurrent call is worth (at most the number of threads set) and how they share it.
int recurrent_threads(const Dims& dims, int gates, bool backward);
Split recurrent_split(const Dims& dims, int threads);

// What the cost model knows of one call among several.
struct CallCost {
    Dims dims;
    int gates;
    bool backward;
};

// Members for calls that could run at the same time, call i on member i % members and each on that thread alone; 1 where
// one after another, each on all threads, takes no longer. `following`: each waits for the steps of the one before it.
int concurrent_members(const CallCost* calls, int count, bool following);

// Steps of a block of input projections for a call that follows another step for step: it may begin that much later.
std::int64_t following_steps(std::int64_t seq_len);

// Members for work that splits freely, by its floating-point operations.
int dense_threads(double flops);

// Part `member` of `count` items in `size` nearly equal contiguous parts.
struct Range {
    std::int64_t begin, end;
};
Range share(std::int64_t count, int size, int member);

}  // namespace fusedrnn
