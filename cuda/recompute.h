// What the cells kept for backward, computed once more where the tape does not hold it. All that they read is
// known by then, so the rows of many steps go through both products together.
#pragma once

#include <memory>

#include "inputs.h"
#include "steps.h"

namespace fusedrnn::cuda {

class Recompute {
  public:
    // Refers to all of them.
    Recompute(const BackwardProblem& problem, const Launcher& launcher, const ScheduleCopy& schedule,
              const Inputs& inputs, Arena& arena);

    static bool is_needed(const BackwardProblem& problem);
    // Bytes of partial sums that run() may need.
    std::int64_t partial_bytes() const;
    // `hidden_before`: T [rows][P], what the recurrent product read.
    void run(const void* hidden_before, void* partial);
    // What the tape would hold.
    const void* saved() const { return saved_; }
    const void* moments() const { return moments_; }

  private:
    void run_block(std::int64_t first, std::int64_t count, const void* hidden_before, void* partial) const;

    const BackwardProblem& p_;
    const Launcher& launcher_;
    const ScheduleCopy& schedule_;
    const Inputs& inputs_;
    const CellTraits& traits_;
    const std::int64_t gates_, steps_;
    void *gx_, *gh_, *saved_, *moments_;
    // A cell that is data runs its steps once more, for what they keep alone.
    ForwardProblem again_{};
    std::unique_ptr<ForwardPass> pass_;
    std::unique_ptr<ForwardSteps> replay_;
};

}  // namespace fusedrnn::cuda
