// The programs of a cell that is data as kernels read them: one piece of memory for each direction of a step.
#pragma once

#include <vector>

#include "kernels/program_arguments.h"

namespace fusedrnn::cuda {

// Operations on rows, then a program; where its parts are in the direction's memory, in bytes.
struct DeviceStage {
    std::int64_t constants, code, values;
    int length, constant_count, inputs, placed, slots;
    const RowOperation* operations;
    int operation_count;
};

struct DeviceProgram {
    std::vector<unsigned char> memory;
    std::vector<DeviceStage> stages;
    std::int64_t bytes() const { return static_cast<std::int64_t>(memory.size()); }
};

// It stays where it is: copies of its memory may be under way.
struct DevicePrograms {
    explicit DevicePrograms(const CellPrograms& cell);
    DevicePrograms(const DevicePrograms&) = delete;
    DevicePrograms& operator=(const DevicePrograms&) = delete;

    const CellPrograms& cell;
    const std::vector<RowOperation> products;  // by number
    const DeviceProgram forward, inference, backward;

    // Gates whose product is that of h with W_hh; 0: there is none.
    int hidden_gates() const { return cell.hidden_product ? cell.first_gates : 0; }
};

}  // namespace fusedrnn::cuda
