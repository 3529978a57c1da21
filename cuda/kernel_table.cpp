#include "kernel_table.h"

#include <cstdlib>
#include <limits>
#include <stdexcept>

#include "cells.h"
#include "cluster.h"
#include "kernels/table.h"
#include "persistent.h"

namespace fusedrnn::cuda {

const MathEntries& entries_ieee();
const MathEntries& entries_tf32();
const MathEntries& entries_tf32x3();
const MathEntries& entries_bf16();
const MathEntries& entries_fp16();
const MathEntries& entries_f64();

namespace {

constexpr std::int64_t kAny = std::numeric_limits<int>::max();
constexpr unsigned kAllMaths = (1u << kMathCount) - 1;
// In float64 the weights are twice as large and the products slower: nothing would be won.
constexpr unsigned kPersistentMaths = kAllMaths & ~(1u << static_cast<int>(Math::f64));
constexpr unsigned kClusterMaths = 1u << static_cast<int>(Math::bf16) | 1u << static_cast<int>(Math::fp16) |
                                   1u << static_cast<int>(Math::tf32);

bool has_steps(const DeviceCell& cell, Math math) { return cell.has_steps(math); }
template <auto kFamily>
bool has(const DeviceCell& cell, Math math) {
    return (cell.*kFamily)[static_cast<int>(math)] != nullptr;
}

// Best first.
constexpr Kernel kKernels[] = {
    // name, architecture, H, B, maths, cells, projections, further reason, pays, launches every step, steps
    {"cluster", 90, kMostClusterHidden, kAny, kClusterMaths, has<&DeviceCell::cluster>, false,
     reason_against_cluster, nullptr, false, cluster_forward_steps, cluster_backward_steps},
    // With a projection each step would be two products, one after the other, with two exchanges.
    {"persistent", 80, kAny, kAny, kPersistentMaths, has<&DeviceCell::persistent>, false,
     reason_against_persistent, persistent_pays, false, persistent_forward_steps, persistent_backward_steps},
    {"step", 80, kAny, kAny, kAllMaths, has_steps, true, nullptr, nullptr, true, step_forward_steps,
     step_backward_steps},
};

std::string at_most(const char* what, std::int64_t limit, std::int64_t got) {
    return std::string(what) + ": expected at most " + std::to_string(limit) + ", got " + std::to_string(got);
}

std::string names() {
    std::string text;
    for (const Kernel& kernel : kKernels) text += (text.empty() ? "" : ", ") + std::string(kernel.name);
    return text;
}

}  // namespace

const MathEntries& kernel_entries(Math math) {
    using Entries = const MathEntries& (*)();
    constexpr Entries kEntries[kMathCount] = {entries_ieee, entries_tf32, entries_tf32x3,
                                              entries_bf16, entries_fp16, entries_f64};
    return kEntries[static_cast<int>(math)]();
}

KernelList kernel_list() { return {kKernels, static_cast<int>(std::size(kKernels))}; }

std::string reason_against(const Kernel& kernel, const Request& request) {
    const Dims& d = request.dims;
    if (request.architecture < kernel.least_architecture) {
        return "device: expected compute capability " + std::to_string(kernel.least_architecture) +
               " or later, got " + std::to_string(request.architecture);
    }
    if ((kernel.maths >> static_cast<int>(request.math) & 1) == 0) {
        return std::string("math: not implemented for ") + kMathNames[static_cast<int>(request.math)];
    }
    if (!kernel.has(*request.cell, request.math)) {
        return std::string("cell: not implemented for ") + request.cell->name;
    }
    if (d.projected && !kernel.projections) return "proj_size: expected 0, got " + std::to_string(d.P);
    if (d.H > kernel.most_hidden) return at_most("H", kernel.most_hidden, d.H);
    if (d.B > kernel.most_batch) return at_most("B", kernel.most_batch, d.B);
    return kernel.further_reason == nullptr ? std::string() : kernel.further_reason(request);
}

const Kernel& choose_kernel(const Request& request, const char* forced) {
    const char* source = "kernel";
    if (forced == nullptr) {
        forced = std::getenv("FUSEDRNN_CUDA_KERNEL");
        source = "FUSEDRNN_CUDA_KERNEL";
    }
    if (forced != nullptr && *forced != '\0') {
        for (const Kernel& kernel : kKernels) {
            if (kernel.name != std::string(forced)) continue;
            const std::string reason = reason_against(kernel, request);
            if (reason.empty()) return kernel;
            throw std::runtime_error(std::string(source) + ": " + forced + " cannot run this: " + reason);
        }
        throw std::invalid_argument(std::string(source) + ": expected one of " + names() + ", got " + forced);
    }
    std::string reasons;
    for (const Kernel& kernel : kKernels) {
        const std::string reason = reason_against(kernel, request);
        if (reason.empty() && kernel.pays != nullptr && !kernel.pays(request)) continue;
        if (reason.empty()) return kernel;
        reasons += std::string("; ") + kernel.name + ": " + reason;
    }
    throw std::runtime_error("no kernel can run this" + reasons);
}

}  // namespace fusedrnn::cuda
