#include "cluster.h"

#include <algorithm>
#include <limits>
#include <stdexcept>

namespace fusedrnn::cuda {

const ClusterEntries& cluster_entries_bf16();
const ClusterEntries& cluster_entries_fp16();
const ClusterEntries& cluster_entries_tf32();

const ClusterEntries* cluster_entries(Math math) {
    switch (math) {
        case Math::bf16:
            return &cluster_entries_bf16();
        case Math::fp16:
            return &cluster_entries_fp16();
        case Math::tf32:
            return &cluster_entries_tf32();
        default:
            return nullptr;
    }
}

namespace {

constexpr std::int64_t kMostInt = std::numeric_limits<int>::max();
constexpr int kMostGroups = 65535;  // blocks along y

std::int64_t ceil_div(std::int64_t n, std::int64_t by) { return (n + by - 1) / by; }

std::string at_most(const char* what, std::int64_t limit, std::int64_t got) {
    return std::string(what) + ": expected at most " + std::to_string(limit) + ", got " + std::to_string(got);
}

struct Attempt {
    ClusterPlan plan;
    std::string reason;
};

// The fewest positions of a cluster that let all of them run at the same time, or else the most there are.
template <class Args>
int choose_form(const Entry<Args> (&forms)[kClusterForms], std::int64_t batch, std::int64_t clusters) {
    int form = 0;
    for (int next = 1; next < kClusterForms && ceil_div(batch, cluster_columns(form)) > clusters; ++next) {
        if (forms[next].kernel != nullptr) form = next;
    }
    return form;
}

template <class Args>
Attempt attempt(const Request& request, const ClusterKernels<Args>& kernels) {
    const Dims& d = request.dims;
    int most_tiles = kMostClusterTiles;
    while (kernels[most_tiles - 1][0].kernel == nullptr) --most_tiles;
    const std::int64_t most_hidden = cluster_hidden(most_tiles);
    if (d.H < 1) return {{}, "H: expected at least 1, got 0"};
    if (d.H > most_hidden) return {{}, at_most("H", most_hidden, d.H)};
    if (d.T * d.B >= kMostInt) return {{}, at_most("T*B", kMostInt - 1, d.T * d.B)};
    ClusterPlan plan{};
    plan.tiles = static_cast<int>(ceil_div(d.H, cluster_hidden(1)));
    // Two at least: a block outside of a cluster has no shared memory of a cluster to receive in.
    plan.blocks = static_cast<int>(std::max<std::int64_t>(2, ceil_div(d.H, std::int64_t{16} * plan.tiles)));
    plan.form = choose_form(kernels[plan.tiles - 1], d.B, std::max(1, request.processors / plan.blocks));
    const std::int64_t groups = ceil_div(std::max<std::int64_t>(1, d.B), cluster_columns(plan.form));
    if (groups > kMostGroups) {
        return {{}, at_most("B", std::int64_t{kMostGroups} * cluster_columns(plan.form), d.B)};
    }
    plan.groups = static_cast<int>(groups);
    return {plan, {}};
}

Attempt attempt(const Request& request) {
    // The code for earlier devices, which later ones than 9.0 run, has none of these kernels.
    if (request.architecture != 90) {
        return {{}, "device: expected compute capability 90, got " + std::to_string(request.architecture)};
    }
    const ClusterEntries* const entries = cluster_entries(request.math);
    if (entries == nullptr) {
        return {{}, std::string("math: not implemented for ") + kMathNames[static_cast<int>(request.math)]};
    }
    if (request.dims.projected) return {{}, "proj_size: expected 0, got " + std::to_string(request.dims.P)};
    const ClusterCell& cell = *request.cell->cluster[static_cast<int>(request.math)];
    return request.backward ? attempt(request, cell.backward) : attempt(request, cell.forward);
}

}  // namespace

std::string reason_against_cluster(const Request& request) { return attempt(request).reason; }

ClusterPlan plan_cluster(const Request& request) {
    const Attempt result = attempt(request);
    if (!result.reason.empty()) throw std::runtime_error(result.reason);
    return result.plan;
}

namespace {

template <class Pass>
ClusterPlan plan_pass(const Pass& pass, bool backward) {
    const Device device = current_device();
    return plan_cluster({pass.problem.cell, pass.problem.math, pass.problem.dims, device.architecture,
                         device.processors, backward});
}

template <class Args>
void start(const Launcher& launcher, const ClusterKernels<Args>& kernels, const ClusterPlan& plan,
           const Args& args) {
    Shape shape;
    shape.grid_x = shape.cluster = plan.blocks;
    shape.grid_y = plan.groups;
    shape.block = cluster_threads(plan.tiles);
    launcher.start(kernels[plan.tiles - 1][plan.form], shape, args, kClusterFormNames[plan.form]);
}

class ClusterForward final : public ForwardSteps {
  public:
    explicit ClusterForward(const ForwardPass& pass) : pass_(pass), plan_(plan_pass(pass, false)) {}
    void run(std::int64_t first, std::int64_t count) const override {
        const ForwardProblem& p = pass_.problem;
        auto args = sweep_arguments<ClusterForwardArgs>(pass_, first, count);
        args.vector = pass_.launcher.is_vector(args.w_hh, p.dims.P, p.dims.P);
        start(pass_.launcher, p.cell->cluster[static_cast<int>(p.math)]->forward, plan_, args);
    }

  private:
    const ForwardPass& pass_;
    const ClusterPlan plan_;
};

class ClusterBackward final : public BackwardSteps {
  public:
    explicit ClusterBackward(const BackwardPass& pass) : pass_(pass), plan_(plan_pass(pass, true)) {}
    void run() const override {
        const BackwardProblem& p = pass_.problem;
        start(pass_.launcher, p.cell->cluster[static_cast<int>(p.math)]->backward, plan_,
              sweep_arguments<SweepBackwardArgs>(pass_));
    }

  private:
    const BackwardPass& pass_;
    const ClusterPlan plan_;
};

}  // namespace

std::unique_ptr<ForwardSteps> cluster_forward_steps(const ForwardPass& pass, Arena&) {
    return std::make_unique<ClusterForward>(pass);
}
std::unique_ptr<BackwardSteps> cluster_backward_steps(const BackwardPass& pass, Arena&) {
    return std::make_unique<ClusterBackward>(pass);
}

}  // namespace fusedrnn::cuda
