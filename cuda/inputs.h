// The inputs of a layer and direction as one matrix, what W_ih makes of them, and sums over equal ones.
//
// Inputs that are looked up in a small table are not copied out of it: its rows are multiplied instead of theirs.
#pragma once

#include "cells.h"
#include "launches.h"

namespace fusedrnn::cuda {

// Of projected inputs at a time; checks make it smaller.
inline std::int64_t input_block_bytes = 256 << 20;
// So many steps of G*H gates.
std::int64_t input_block_steps(const Dims& dims, std::int64_t gates, Math math);

class Inputs {
  public:
    // Of at most `steps` steps at a time; `projects`: whether project() is called. Refers to the launcher and
    // the schedule.
    template <class Problem>
    Inputs(const Problem& problem, std::int64_t steps, bool projects, const Launcher& launcher,
           const ScheduleCopy& schedule, Arena& arena)
        : Inputs(InputProblem{problem.cell, problem.math, problem.dims, problem.weights, problem.x,
                              problem.lookups},
                 steps, projects, launcher, schedule, arena) {}

    // Whether the rows of a table stand for the inputs.
    bool by_table() const { return by_table_; }
    // Once, before the others.
    void prepare(void* partial) const;
    // x of the steps [first, first + count), by compact index; not by table.
    Matrix rows(std::int64_t first, std::int64_t count) const;
    // All of x, or the table.
    Matrix all() const;
    // gx = W_ih x + b of these steps, C, with all biases where the gates are not split.
    void project(std::int64_t first, std::int64_t count, void* gx, void* partial) const;
    // Bytes of partial sums that this may need for so many steps.
    std::int64_t partial_bytes(std::int64_t steps) const;

  private:
    // What forward and backward problems name alike.
    struct InputProblem {
        const DeviceCell* cell;
        Math math;
        Dims dims;
        Weights weights;
        ConstRows x;
        Lookups lookups;
    };
    Inputs(const InputProblem& problem, std::int64_t steps, bool projects, const Launcher& launcher,
           const ScheduleCopy& schedule, Arena& arena);
    void multiply(Matrix x, std::int64_t rows, void* gx, void* partial) const;
    void look_up(const Entry<LookupArgs>& entry, Matrix from, std::int64_t n, std::int64_t first,
                 std::int64_t count, void* to) const;

    const InputProblem p_;
    const Launcher& launcher_;
    const ScheduleCopy& schedule_;
    const CellTraits& traits_;
    const std::int64_t item_, gates_, stride_;
    const bool by_table_;
    void *const rows_, *const index_, *const table_gates_;
};

// Sums of what belongs to the same row of a table, in the order of the inputs.
class InputSums {
  public:
    // Refers to all of them.
    InputSums(const BackwardProblem& problem, const Launcher& launcher, const ScheduleCopy& schedule,
              Arena& arena);
    // Once, before the other.
    void send() const;
    // to (V, n) = the sums of rows of `from` [rows][n], or added to it; all T.
    void run(const void* from, std::int64_t n, void* to, std::int64_t to_stride, bool accumulate) const;

  private:
    const BackwardProblem& p_;
    const Launcher& launcher_;
    const std::int64_t first_count_, inputs_count_;
    void *const first_, *const inputs_;
};

}  // namespace fusedrnn::cuda
