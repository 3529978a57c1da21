// The cells of this build, each with its kernels.
#pragma once

#include <string>

#include "kernels/cluster_arguments.h"
#include "kernels/persistent_arguments.h"
#include "problem.h"
#include "programs.h"

namespace fusedrnn::cuda {

// What a cell is, and by math mode its kernels in each family; null where it has none there. A cell that is data has its
// programs instead, which the family `step` runs. Whoever calls them has a pointer to one.
struct DeviceCell : CellTraits {
    const StepCell* step[kMathCount];
    const PersistentCell* persistent[kMathCount];
    const ClusterCell* cluster[kMathCount];
    const DevicePrograms* programs;

    bool has_steps(Math math) const { return programs != nullptr || step[static_cast<int>(math)] != nullptr; }
    const StepCell& steps(Math math) const { return *step[static_cast<int>(math)]; }
};

struct DeviceCells {
    const DeviceCell* first;
    int count;
    const DeviceCell* begin() const { return first; }
    const DeviceCell* end() const { return first + count; }
};

// In the order of csrc/cells/all.h.
DeviceCells device_cells();

// std::invalid_argument for an unknown name.
const DeviceCell& device_cell(const std::string& name);

}  // namespace fusedrnn::cuda
