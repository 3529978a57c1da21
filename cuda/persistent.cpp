#include "persistent.h"

#include <algorithm>
#include <limits>

namespace fusedrnn::cuda {

#define FUSEDRNN_PERSISTENT_MATHS(X) X(ieee) X(tf32) X(tf32x3) X(bf16) X(fp16)
#define FUSEDRNN_PERSISTENT_DECLARATION(math) const PersistentEntries& persistent_entries_##math();
FUSEDRNN_PERSISTENT_MATHS(FUSEDRNN_PERSISTENT_DECLARATION)
#undef FUSEDRNN_PERSISTENT_DECLARATION

const PersistentEntries* persistent_entries(Math math) {
#define FUSEDRNN_PERSISTENT_FIND(name) \
    if (math == Math::name) return &persistent_entries_##name();
    FUSEDRNN_PERSISTENT_MATHS(FUSEDRNN_PERSISTENT_FIND)
#undef FUSEDRNN_PERSISTENT_FIND
    return nullptr;
}

namespace {

constexpr std::int64_t kMostInt = std::numeric_limits<int>::max();

std::int64_t tiles_of(std::int64_t n, std::int64_t tile) { return (n + tile - 1) / tile; }

// Positions of a group, at most, that the threads of a form have cells for.
int most_columns(int form) { return kPersistentCells[form] * 32 * kPersistentWarps / kUnitsOfBlock; }

struct Attempt {
    PersistentPlan plan;
    std::string reason;
};

// As few chunks of K to a warp as the warps allow, and no more warps than then have any.
void share_out(PersistentShape& shape, std::int64_t chunks) {
    shape.chunks = static_cast<int>(chunks);
    shape.share = static_cast<int>(tiles_of(chunks, kPersistentWarps));
    shape.warps = static_cast<int>(tiles_of(chunks, shape.share));
}

template <class Args>
Attempt attempt(const Request& request, const PersistentEntries& entries,
                const PersistentEntry<Args> (&forms)[kPersistentForms]) {
    const std::int64_t H = request.dims.H, B = std::max<std::int64_t>(1, request.dims.B);
    const std::string blocks = std::to_string(request.processors);
    const std::int64_t tiles = tiles_of(H, kUnitsOfBlock);
    const std::int64_t most_tiles =
        std::int64_t{kPersistentWarps} * forms[0].most_share * entries.chunk / forms[0].depth;
    if (tiles > most_tiles) {
        return {{},
                "H: expected at most " + std::to_string(most_tiles * kUnitsOfBlock) +
                    ", whose weights fit into registers, got " + std::to_string(H)};
    }
    const std::int64_t most_groups = request.processors / tiles;
    if (most_groups == 0) {
        return {{},
                "H: expected at most " + std::to_string(kUnitsOfBlock * request.processors) +
                    ", 16 for each of the " + blocks + " multiprocessors, got " + std::to_string(H)};
    }
    const std::int64_t columns = 8 * tiles_of(tiles_of(B, 8), most_groups),
                       most = most_columns(kPersistentForms - 1);
    if (columns > most) {
        return {{},
                "B: expected at most " + std::to_string(most * most_groups) + " (groups of " +
                    std::to_string(tiles) + " blocks on " + blocks +
                    " multiprocessors: " + std::to_string(most_groups) + "), got " + std::to_string(B)};
    }
    PersistentPlan plan{};
    while (columns > most_columns(plan.form)) ++plan.form;
    PersistentShape& shape = plan.shape;
    shape.tiles = static_cast<int>(tiles);
    shape.columns = static_cast<int>(columns);
    shape.groups = static_cast<int>(tiles_of(B, columns));
    share_out(shape, tiles_of(tiles * forms[0].depth, entries.chunk));
    if (shape.share > forms[plan.form].most_share) {
        return {{},
                "B: expected at most " + std::to_string(most_columns(0) * most_groups) +
                    ", beside whose cells the weights of H " + std::to_string(H) +
                    " fit into registers, got " + std::to_string(B)};
    }
    const int threads = kUnitsOfBlock * shape.columns / kPersistentCells[plan.form];
    shape.warps = std::max(shape.warps, static_cast<int>(tiles_of(threads, 32)));
    return {plan, {}};
}

Attempt attempt(const Request& request) {
    const PersistentEntries* const entries = persistent_entries(request.math);
    const Dims& d = request.dims;
    if (entries == nullptr) {
        return {{}, std::string("math: not implemented for ") + kMathNames[static_cast<int>(request.math)]};
    }
    if (d.H < 1) return {{}, "H: expected at least 1, got 0"};
    if (d.T * d.B >= kMostInt) return {{}, "T*B: expected less than 2^31, got " + std::to_string(d.T * d.B)};
    const int math = static_cast<int>(request.math);
    return request.backward ? attempt(request, *entries, request.cell->persistent[math]->backward)
                            : attempt(request, *entries, request.cell->persistent[math]->forward);
}

}  // namespace

std::string reason_against_persistent(const Request& request) {
    Request forward = request;
    forward.backward = false;
    const std::string reason = attempt(forward).reason;
    return reason.empty() && request.backward ? attempt(request).reason : reason;
}

bool persistent_pays(const Request& request) {
    const std::int64_t gates = request.cell->gates;
    // Without tensor cores a warp has too few pieces on their way for any but the smallest weights.
    if (request.math == Math::ieee) return gates * request.dims.H <= 400;
    // With more than 16 columns each block loads so much in a step that launches cost less, but for a forward step
    // of many gates, whose weights would be loaded anew.
    const bool wide = plan_persistent(request).shape.columns > 16;
    return !wide || (!request.backward && gates > 1);
}

PersistentPlan plan_persistent(const Request& request) {
    const Attempt result = attempt(request);
    if (!result.reason.empty()) throw std::runtime_error(result.reason);
    return result.plan;
}

namespace {

// The plan of a pass on the current device, and its launches.
class Persistent {
  public:
    // At most so many steps to a launch.
    Persistent(const DeviceCell* cell, Math math, const Dims& dims, std::int64_t steps, bool backward,
               Arena& arena) {
        const Device device = current_device();
        plan_ = plan_persistent({cell, math, dims, device.architecture, device.processors, backward});
        const PersistentShape& shape = plan_.shape;
        step_bytes_ = std::int64_t{shape.groups} * shape.columns * shape.chunks * kChunkBytes;
        exchange_ = arena.take(step_bytes_ * steps);
    }

    template <class Args>
    void start(const Launcher& launcher, const PersistentEntry<Args> (&forms)[kPersistentForms], Args args,
               std::int64_t steps) const {
        args.shape = plan_.shape;
        args.exchange = exchange_;
        fill(exchange_, 0xff, static_cast<std::size_t>(step_bytes_ * steps), launcher.stream());
        const PersistentEntry<Args>& entry = forms[plan_.form];
        Shape shape;
        shape.grid_x = plan_.shape.tiles;
        shape.grid_y = plan_.shape.groups;
        shape.block = 32 * plan_.shape.warps;
        shape.shared_bytes = persistent_shared_bytes(entry, plan_.shape);
        shape.cooperative = true;
        launcher.start(entry, shape, args, kPersistentFormNames[plan_.form]);
    }

  private:
    PersistentPlan plan_;
    void* exchange_;
    std::int64_t step_bytes_;
};

template <class Problem>
const PersistentCell& kernels_of(const Problem& problem) {
    return *problem.cell->persistent[static_cast<int>(problem.math)];
}

class PersistentForward final : public ForwardSteps {
  public:
    PersistentForward(const ForwardPass& pass, Arena& arena)
        : pass_(pass),
          launch_(pass.problem.cell, pass.problem.math, pass.problem.dims, pass.block_steps, false, arena) {}
    void run(std::int64_t first, std::int64_t count) const override {
        launch_.start(pass_.launcher, kernels_of(pass_.problem).forward,
                      sweep_arguments<PersistentForwardArgs>(pass_, first, count), count);
    }

  private:
    const ForwardPass& pass_;
    Persistent launch_;
};

class PersistentBackward final : public BackwardSteps {
  public:
    PersistentBackward(const BackwardPass& pass, Arena& arena)
        : pass_(pass),
          launch_(pass.problem.cell, pass.problem.math, pass.problem.dims, pass.problem.dims.T, true, arena) {
    }
    void run() const override {
        launch_.start(pass_.launcher, kernels_of(pass_.problem).backward,
                      sweep_arguments<PersistentBackwardArgs>(pass_), pass_.problem.dims.T);
    }

  private:
    const BackwardPass& pass_;
    Persistent launch_;
};

}  // namespace

std::unique_ptr<ForwardSteps> persistent_forward_steps(const ForwardPass& pass, Arena& arena) {
    return std::make_unique<PersistentForward>(pass, arena);
}
std::unique_ptr<BackwardSteps> persistent_backward_steps(const BackwardPass& pass, Arena& arena) {
    return std::make_unique<PersistentBackward>(pass, arena);
}

}  // namespace fusedrnn::cuda
