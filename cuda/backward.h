// Backward over a whole sequence by a launch a step: the sweep through the steps leaves the gate gradients,
// then the gradients of the inputs and weights follow as products over all rows.
#pragma once

#include "problem.h"
#include "runtime.h"

namespace fusedrnn::cuda {

// Bytes of workspace, aligned to 256.
std::int64_t backward_by_steps_workspace(const BackwardProblem& problem);
void backward_by_steps(const BackwardProblem& problem, void* workspace, Stream stream);

}  // namespace fusedrnn::cuda
