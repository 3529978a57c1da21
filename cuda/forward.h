// Forward over a whole sequence by a launch a step: the input projection of a block of steps as one product,
// then the steps of the block.
#pragma once

#include "problem.h"
#include "runtime.h"

namespace fusedrnn::cuda {

// Bytes of workspace, aligned to 256.
std::int64_t forward_by_steps_workspace(const ForwardProblem& problem);
void forward_by_steps(const ForwardProblem& problem, void* workspace, Stream stream);

}  // namespace fusedrnn::cuda
