// Many steps in one launch: whether a problem fits on the device that way, and how it is cut up.
//
// A block holds the weights of 16 units, so ceil(H / 16) blocks make a group, which works on some positions
// of the batch by itself. All blocks must be resident at the same time, one to a multiprocessor: groups *
// ceil(H / 16) of them, while the weights fill the registers.
#pragma once

#include "cells.h"
#include "kernel_table.h"
#include "kernels/persistent_arguments.h"

namespace fusedrnn::cuda {

struct PersistentPlan {
    PersistentShape shape;
    int form;  // of kPersistentCells
};

// Empty where the request fits.
std::string reason_against_persistent(const Request& request);
// Whether it was faster than the step kernel, on an H200, where it fits.
bool persistent_pays(const Request& request);
// How it is cut up; std::runtime_error with the reason where it does not fit.
PersistentPlan plan_persistent(const Request& request);
// Shared memory of a block.
template <class Args>
int persistent_shared_bytes(const PersistentEntry<Args>& entry, const PersistentShape& shape) {
    const int sums = entry.column_bytes * shape.columns;
    return shape.warps * (2 * sums > entry.stage_bytes ? 2 * sums : entry.stage_bytes);
}

}  // namespace fusedrnn::cuda
