// Forward over a whole sequence: the input projection of a block of steps as one product, then the steps of
// the block, by a launch each or by one for all of them (see persistent.h and cluster.h).
#pragma once

#include "problem.h"
#include "runtime.h"

namespace fusedrnn::cuda {

// Bytes of workspace, aligned to 256.
std::int64_t forward_by_steps_workspace(const ForwardProblem& problem);
void forward_by_steps(const ForwardProblem& problem, void* workspace, Stream stream);

std::int64_t forward_persistent_workspace(const ForwardProblem& problem);
void forward_persistent(const ForwardProblem& problem, void* workspace, Stream stream);

std::int64_t forward_cluster_workspace(const ForwardProblem& problem);
void forward_cluster(const ForwardProblem& problem, void* workspace, Stream stream);

}  // namespace fusedrnn::cuda
