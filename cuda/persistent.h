// Many steps in one launch: whether a problem fits on the device that way, how it is cut up, and the
// launches.
//
// A block holds the weights of 16 units, so ceil(H / 16) blocks make a group, which works on some positions
// of the batch by itself. All blocks must be resident at the same time, one to a multiprocessor: groups *
// ceil(H / 16) of them, while the weights fill the registers.
#pragma once

#include "kernel_table.h"
#include "kernels/persistent_arguments.h"
#include "launches.h"

namespace fusedrnn::cuda {

struct PersistentPlan {
    PersistentShape shape;
    int form;  // of kPersistentCells
};

class Persistent {
  public:
    // Of a request that reason_against_persistent() has nothing against, on the current device.
    // At most so many steps to a launch.
    Persistent(CellId cell, Math math, const Dims& dims, std::int64_t steps, bool backward, Arena& arena);

    // The steps args.first and following; `args` without its shape and exchange.
    void forward(const Launcher& launcher, PersistentForwardArgs args) const;
    void backward(const Launcher& launcher, PersistentBackwardArgs args) const;

  private:
    template <class Args>
    void start(const Launcher& launcher, const PersistentEntry<Args>& entry, Args& args,
               std::int64_t steps) const;

    const PersistentEntries& entries_;
    CellId cell_;
    PersistentPlan plan_;
    void* exchange_;
    std::int64_t step_bytes_;
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
