// Which kernel runs a layer.
//
// The table in kernel_table.cpp is read from the top; the first row that can run the problem does.
// FUSEDRNN_CUDA_KERNEL, or a caller, may name one instead, which is then used or refused with the reason.
#pragma once

#include <memory>
#include <string>

#include "steps.h"

namespace fusedrnn::cuda {

// A problem as far as the choice depends on it.
struct Request {
    const DeviceCell* cell;
    Math math;
    Dims dims;
    int architecture;  // 80 for compute capability 8.0
    int processors;
    bool backward;
};

// A family of kernels: which problems it takes, and its way through their steps.
struct Kernel {
    const char* name;
    int least_architecture;
    std::int64_t most_hidden;  // the largest H
    std::int64_t most_batch;
    unsigned maths;  // bit 1 << math
    bool (*has)(const DeviceCell&, Math);
    bool projections;
    std::string (*further_reason)(const Request&);  // what else speaks against a problem; null: nothing
    bool (*pays)(const Request&);  // whether it is faster than the rows below, where measured; null: always
    bool launches_every_step;      // so that calls that come again are worth a graph
    std::unique_ptr<ForwardSteps> (*forward_steps)(const ForwardPass&, Arena&);
    std::unique_ptr<BackwardSteps> (*backward_steps)(const BackwardPass&, Arena&);

    // The drivers, of a problem that it takes. Workspaces are aligned to 256 bytes.
    std::int64_t forward_workspace(const ForwardProblem& problem) const;
    void forward(const ForwardProblem& problem, void* workspace, Stream stream) const;
    std::int64_t backward_workspace(const BackwardProblem& problem) const;
    void backward(const BackwardProblem& problem, void* workspace, Stream stream) const;
};

// Why a kernel cannot run a problem, as "H: expected at most 1024, got 2048"; empty if it can.
std::string reason_against(const Kernel& kernel, const Request& request);

// `forced`: the name of a kernel, or null for what FUSEDRNN_CUDA_KERNEL says, or else the table. Throws
// std::invalid_argument for an unknown name and std::runtime_error where nothing, or not what was asked for,
// can run.
const Kernel& choose_kernel(const Request& request, const char* forced = nullptr);

// All rows, in their order.
struct KernelList {
    const Kernel* rows;
    int count;
    const Kernel* begin() const { return rows; }
    const Kernel* end() const { return rows + count; }
};
KernelList kernel_list();

}  // namespace fusedrnn::cuda
