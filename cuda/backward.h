// Backward over a whole sequence: the sweep through the steps, by a launch each or by one for all of them
// (see persistent.h and cluster.h), leaves the gate gradients, then the gradients of the inputs and weights
// follow as products over all rows.
#pragma once

#include "problem.h"
#include "runtime.h"

namespace fusedrnn::cuda {

// Bytes of workspace, aligned to 256.
std::int64_t backward_by_steps_workspace(const BackwardProblem& problem);
void backward_by_steps(const BackwardProblem& problem, void* workspace, Stream stream);

std::int64_t backward_persistent_workspace(const BackwardProblem& problem);
void backward_persistent(const BackwardProblem& problem, void* workspace, Stream stream);

std::int64_t backward_cluster_workspace(const BackwardProblem& problem);
void backward_cluster(const BackwardProblem& problem, void* workspace, Stream stream);

}  // namespace fusedrnn::cuda
