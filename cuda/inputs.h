// The inputs of a layer and direction as one matrix, and what W_ih makes of them.
#pragma once

#include "launches.h"

namespace fusedrnn::cuda {

// Of projected inputs at a time; checks make it smaller.
inline std::int64_t input_block_bytes = 256 << 20;
// So many steps of G*H gates.
std::int64_t input_block_steps(const Dims& dims, std::int64_t gates, Math math);

class Inputs {
  public:
    // Of at most `steps` steps at a time. Refers to the launcher and the schedule.
    template <class Problem>
    Inputs(const Problem& problem, std::int64_t steps, const Launcher& launcher, const ScheduleCopy& schedule,
           Arena& arena)
        : Inputs(Part{problem.cell, problem.math, problem.dims, problem.weights, problem.x}, steps, launcher,
                 schedule, arena) {}

    // x of the steps [first, first + count), by compact index.
    Matrix rows(std::int64_t first, std::int64_t count) const;
    // gx = W_ih x + b of the same, C, with all biases where the gates are not split.
    void project(std::int64_t first, std::int64_t count, void* gx, void* partial) const;
    // Bytes of partial sums that this may need for so many steps.
    std::int64_t partial_bytes(std::int64_t steps) const;

  private:
    // What forward and backward problems name alike.
    struct Part {
        CellId cell;
        Math math;
        Dims dims;
        Weights weights;
        ConstRows x;
    };
    Inputs(const Part& part, std::int64_t steps, const Launcher& launcher, const ScheduleCopy& schedule,
           Arena& arena);

    const Part p_;
    const Launcher& launcher_;
    const ScheduleCopy& schedule_;
    const CellTraits& traits_;
    const std::int64_t item_, gates_, stride_;
    void* const rows_;
};

}  // namespace fusedrnn::cuda
