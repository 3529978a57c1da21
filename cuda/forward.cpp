#include "forward.h"

#include <algorithm>
#include <optional>

#include "cluster.h"
#include "graphs.h"
#include "inputs.h"
#include "launches.h"
#include "persistent.h"

namespace fusedrnn::cuda {

namespace {

class Forward {
  public:
    Forward(const ForwardProblem& problem, Way way, void* workspace, Stream stream)
        : p_(problem),
          launcher_(problem.math, stream),
          arena_(workspace),
          schedule_(problem.dims, problem.schedule, arena_),
          gates_(launcher_.entries().traits[problem.cell].gates * problem.dims.H),
          block_steps_(input_block_steps(problem.dims, gates_, problem.math)),
          inputs_(problem, block_steps_, true, launcher_, schedule_, arena_) {
        const Dims& d = p_.dims;
        const MathEntries& entries = launcher_.entries();
        check_problem(entries, p_.cell, d);
        const std::int64_t item = storage_bytes(p_.math), compute = compute_bytes(p_.math);
        const CellTraits& traits = entries.traits[p_.cell];
        beyond_ = traits.states - 1;
        saved_ = traits.saved;
        gx_ = arena_.take(block_steps_ * d.B * gates_ * compute);
        by_library_ = way == Way::steps && launcher_.multiplies_steps(d, gates_, p_.schedule);
        partial_ = arena_.take(std::max(inputs_.partial_bytes(block_steps_),
                                        by_library_ ? launcher_.partial_bytes(d.B, gates_, d.P) : 0));
        product_ = arena_.take(by_library_ ? d.B * gates_ * compute : 0);
        states_ = arena_.take(p_.states != nullptr ? 0 : d.B * beyond_ * d.H * compute);
        hidden_ = arena_.take(d.projected && p_.hidden == nullptr ? d.B * d.H * item : 0);
        if (d.B == 0 || d.T == 0) return;
        if (way == Way::persistent) persistent_.emplace(p_.cell, p_.math, d, block_steps_, false, arena_);
        if (way == Way::cluster) {
            const Device device = current_device();
            cluster_ = plan_cluster({p_.cell, p_.math, d, device.architecture, device.processors, false});
        }
    }

    std::int64_t bytes() const { return arena_.used(); }

    void run() {
        const Dims& d = p_.dims;
        if (d.B == 0) return;
        schedule_.send(launcher_.stream());
        inputs_.prepare(partial_);
        if (!schedule_.uniform()) {
            RowsArgs args{};
            args.schedule = schedule_.device;
            args.to = p_.y;
            args.n = d.P;
            launcher_.move_rows(launcher_.entries().clear_padding, args, d.T);
        }
        const std::int64_t total = schedule_.longest();
        for (std::int64_t done = 0; done < total; done += block_steps_) {
            const std::int64_t count = std::min(block_steps_, total - done);
            const std::int64_t first = p_.schedule.reverse ? total - done - count : done;
            inputs_.project(first, count, gx_, partial_);
            if (persistent_) {
                persistent_->forward(launcher_, many_steps<PersistentForwardArgs>(first, count));
            } else if (cluster_) {
                auto args = many_steps<ClusterForwardArgs>(first, count);
                args.vector = launcher_.is_vector(args.w_hh, d.P, d.P);
                launch_cluster_forward(launcher_, p_.cell, p_.math, *cluster_, args);
            } else {
                for (std::int64_t i = 0; i < count; ++i) {
                    run_step(first, p_.schedule.reverse ? first + count - 1 - i : first + i);
                }
            }
        }
        store_final();
    }

  private:
    // The states beyond h after step t.
    void* states_after(std::int64_t t) const {
        if (p_.states == nullptr) return states_;
        return offset_bytes(p_.states, schedule_.offset(t) * beyond_ * p_.dims.H * compute_bytes(p_.math));
    }

    // Whether all rows that the recurrent product may read are fit for loads of 16 bytes.
    bool is_vector() const {
        const std::int64_t P = p_.dims.P;
        return launcher_.is_vector(p_.weights.w_hh, P, P) &&
               launcher_.is_vector(p_.y.data, P, p_.y.t_stride, p_.y.b_stride) &&
               launcher_.is_vector(p_.initial[0], P, P) &&
               launcher_.is_vector(p_.reset[0], P, p_.reset_stride[0]);
    }

    // All of them in one launch.
    template <class Args>
    Args many_steps(std::int64_t first, std::int64_t count) const {
        Args args{};
        args.w_hh = p_.weights.w_hh;
        args.b_hh = p_.weights.b_hh;
        args.source = state_source(p_);
        args.schedule = schedule_.device;
        args.first = first, args.count = count;
        args.gx = gx_;
        args.y = p_.y;
        args.states = p_.states != nullptr ? p_.states : states_;
        args.states_by_index = p_.states != nullptr;
        args.saved = p_.saved;
        return args;
    }

    // W_hh h after step t, or of the initial state; null where that is zero.
    const void* multiply_step(std::int64_t t) const {
        const Dims& d = p_.dims;
        const std::int64_t item = storage_bytes(p_.math);
        Product product{};
        product.layout = Layout::kNT;
        product.m = d.B, product.n = gates_, product.k = d.P;
        product.a = {p_.initial[0], d.P};
        if (t >= 0 && t < d.T) product.a = {offset_bytes(p_.y.data, t * p_.y.t_stride * item), p_.y.b_stride};
        if (product.a.data == nullptr) return nullptr;
        product.b = {p_.weights.w_hh, d.P};
        product.c = product_, product.c_stride = gates_;
        launcher_.multiply(product, partial_);
        return product_;
    }

    void run_step(std::int64_t block_first, std::int64_t t) {
        const Dims& d = p_.dims;
        const std::int64_t item = storage_bytes(p_.math), compute = compute_bytes(p_.math),
                           offset = schedule_.offset(t);
        const std::int64_t before = p_.schedule.reverse ? t + 1 : t - 1;
        void* const y = offset_bytes(p_.y.data, t * p_.y.t_stride * item);
        StepForwardArgs args{};
        args.w_hh = p_.weights.w_hh;
        args.b_hh = p_.weights.b_hh;
        args.gx = offset_bytes(gx_, (offset - schedule_.offset(block_first)) * gates_ * compute);
        args.source = state_source(p_);
        args.now = schedule_.moment(t);
        args.states_before = before >= 0 && before < d.T ? states_after(before) : nullptr;
        args.order = schedule_.device.order;
        args.hidden = y;
        args.hidden_stride = p_.y.b_stride;
        if (d.projected) {
            args.hidden = p_.hidden == nullptr ? hidden_ : offset_bytes(p_.hidden, offset * d.H * item);
            args.hidden_stride = d.H;
            args.hidden_by_position = true;
        }
        args.states = states_after(t);
        args.saved = offset_bytes(p_.saved, offset * d.H * saved_ * compute);
        args.rows = static_cast<int>(schedule_.active(t));
        if (by_library_) args.product = multiply_step(before);
        const MathEntries& entries = launcher_.entries();
        launcher_.step(entries.cells[p_.cell].forward, args, is_vector(), args.rows, d.H, d.P);
        if (!d.projected) return;
        ProjectArgs project{};
        project.w = p_.weights.w_hr;
        project.rows = args.hidden;
        project.out = y;
        project.out_stride = p_.y.b_stride;
        project.order = args.order;
        project.m = static_cast<int>(d.P);
        project.k = static_cast<int>(d.H);
        project.count = args.rows;
        const bool vector =
            launcher_.is_vector(project.w, d.H, d.H) && launcher_.is_vector(args.hidden, d.H, d.H);
        launcher_.step(entries.project, project, vector, args.rows, d.P, d.H);
    }

    void store_final() {
        FinalStateArgs args{};
        args.schedule = schedule_.device;
        args.y = {p_.y.data, p_.y.t_stride, p_.y.b_stride};
        args.states = p_.states != nullptr ? p_.states : states_;
        args.states_by_index = p_.states != nullptr;
        for (int k = 0; k < kMaxStates; ++k) {
            args.initial[k] = p_.initial[k];
            args.final[k] = p_.final[k];
        }
        args.H = p_.dims.H, args.P = p_.dims.P;
        args.beyond = static_cast<int>(beyond_);
        args.reverse = p_.schedule.reverse;
        Shape shape;
        shape.grid_x = static_cast<int>(p_.dims.B);
        shape.block = 128;
        launcher_.start(launcher_.entries().final_state, shape, args);
    }

    const ForwardProblem& p_;
    Launcher launcher_;
    Arena arena_;
    ScheduleCopy schedule_;
    std::int64_t gates_, block_steps_;
    Inputs inputs_;
    std::int64_t beyond_, saved_;
    bool by_library_;
    void *gx_, *partial_, *product_, *states_, *hidden_;
    std::optional<Persistent> persistent_;
    std::optional<ClusterPlan> cluster_;
};

}  // namespace

std::int64_t forward_by_steps_workspace(const ForwardProblem& problem) {
    return Forward(problem, Way::steps, nullptr, nullptr).bytes();
}
std::int64_t forward_persistent_workspace(const ForwardProblem& problem) {
    return Forward(problem, Way::persistent, nullptr, nullptr).bytes();
}
std::int64_t forward_cluster_workspace(const ForwardProblem& problem) {
    return Forward(problem, Way::cluster, nullptr, nullptr).bytes();
}

void forward_by_steps(const ForwardProblem& problem, void* workspace, Stream stream) {
    Graphs::all().run(problem, workspace, forward_by_steps_workspace(problem), stream,
                      [&](Stream on) { Forward(problem, Way::steps, workspace, on).run(); });
}
void forward_persistent(const ForwardProblem& problem, void* workspace, Stream stream) {
    Forward(problem, Way::persistent, workspace, stream).run();
}
void forward_cluster(const ForwardProblem& problem, void* workspace, Stream stream) {
    Forward(problem, Way::cluster, workspace, stream).run();
}

}  // namespace fusedrnn::cuda
