#include "backward.h"

#include <algorithm>
#include <optional>

#include "cluster.h"
#include "graphs.h"
#include "inputs.h"
#include "launches.h"
#include "persistent.h"
#include "recompute.h"

namespace fusedrnn::cuda {

namespace {

class Backward {
  public:
    Backward(const BackwardProblem& problem, Way way, void* workspace, Stream stream)
        : p_(problem),
          launcher_(problem.math, stream),
          arena_(workspace),
          schedule_(problem.dims, problem.schedule, arena_),
          traits_(launcher_.entries().traits[problem.cell]),
          inputs_(problem,
                  problem.dparams.w_ih != nullptr || Recompute::is_needed(problem) ? problem.dims.T : 0,
                  Recompute::is_needed(problem), launcher_, schedule_, arena_),
          sums_(problem, launcher_, schedule_, arena_),
          recompute_(problem, launcher_, schedule_, inputs_, arena_),
          saved_(problem.saved) {
        const Dims& d = p_.dims;
        check_problem(launcher_.entries(), p_.cell, d);
        item_ = storage_bytes(p_.math), compute_ = compute_bytes(p_.math);
        gates_ = traits_.gates * d.H;
        rows_ = schedule_.rows();
        const bool by_table = inputs_.by_table();
        input_rows_ = by_table ? d.V : rows_;
        if (d.V == 0) {
            dx_stride_ = matrix_stride(schedule_, p_.dx.t_stride, p_.dx.b_stride);
        } else {
            dx_stride_ = !by_table ? 0 : d.V == 1 ? d.I : p_.dx.b_stride;
        }
        w_hh_t_ = arena_.take(way == Way::steps ? gates_ * d.P * item_ : 0);
        w_hr_t_ = arena_.take(d.projected ? d.P * d.H * item_ : 0);
        carry_ = arena_.take(way == Way::steps ? d.B * traits_.states * d.H * compute_ : 0);
        by_library_ = way == Way::steps && launcher_.multiplies_steps(d, gates_, p_.schedule);
        product_ = arena_.take(by_library_ ? d.B * d.H * compute_ : 0);
        dgh_ = arena_.take(rows_ * gates_ * item_);
        dgx_ = traits_.split_gates ? arena_.take(rows_ * gates_ * item_) : dgh_;
        input_gates_ = by_table ? arena_.take(d.V * gates_ * item_) : dgx_;
        dout_ = arena_.take(d.projected ? rows_ * d.P * item_ : 0);
        hidden_before_ = arena_.take(reads_hidden() ? rows_ * d.P * item_ : 0);
        dx_rows_ = arena_.take(p_.dx.data != nullptr && dx_stride_ == 0 ? rows_ * d.I * item_ : 0);
        partial_ = arena_.take(std::max(
            {recompute_.partial_bytes(), launcher_.partial_bytes(rows_, d.I, gates_),
             launcher_.partial_bytes(gates_, d.I, rows_), launcher_.partial_bytes(gates_, d.P, rows_),
             d.projected ? launcher_.partial_bytes(d.P, d.H, rows_) : 0,
             by_library_ ? launcher_.partial_bytes(d.B, d.H, gates_) : 0,
             launcher_.column_bytes(rows_, gates_)}));
        if (d.B == 0 || d.T == 0) return;
        if (way == Way::persistent) persistent_.emplace(p_.cell, p_.math, d, d.T, true, arena_);
        if (way == Way::cluster) {
            const Device device = current_device();
            cluster_ = plan_cluster({p_.cell, p_.math, d, device.architecture, device.processors, true});
        }
    }

    std::int64_t bytes() const { return arena_.used(); }

    void run() {
        const Dims& d = p_.dims;
        schedule_.send(launcher_.stream());
        inputs_.prepare(partial_);
        sums_.send();
        if (d.B > 0) sweep();
        if (inputs_.by_table()) sums_.run(dgx_, gates_, input_gates_, gates_, false);
        input_gradients();
        weight_gradients();
    }

  private:
    const void* gate_gradients(std::int64_t t) const {
        return offset_bytes(dgh_, schedule_.offset(t) * gates_ * item_);
    }

    void sweep() {
        pass_through_empty_rows();
        gather_hidden();
        if (Recompute::is_needed(p_)) saved_ = recompute_.run(hidden_before_, partial_);
        if (persistent_) {
            persistent_->backward(launcher_, all_steps<PersistentBackwardArgs>());
        } else if (cluster_) {
            launch_cluster_backward(launcher_, p_.cell, p_.math, *cluster_, all_steps<SweepBackwardArgs>());
        } else {
            run_steps();
        }
    }

    // A row that never had a step gives its final state's gradient to its initial state.
    void pass_through_empty_rows() {
        if (schedule_.uniform() && p_.dims.T > 0) return;
        FinalStateArgs args{};
        args.schedule = schedule_.device;
        for (int k = 0; k < kMaxStates; ++k) {
            args.initial[k] = p_.dfinal[k];
            args.final[k] = p_.dinitial[k];
        }
        args.H = p_.dims.H, args.P = p_.dims.P;
        args.beyond = traits_.states - 1;
        args.only_empty = true;
        Shape shape;
        shape.grid_x = static_cast<int>(p_.dims.B);
        shape.block = 128;
        launcher_.start(launcher_.entries().final_state, shape, args);
    }

    void run_steps() {
        const Dims& d = p_.dims;
        const std::int64_t total = schedule_.longest();
        if (total == 0) return;
        launcher_.transpose(p_.weights.w_hh, gates_, d.P, w_hh_t_);
        if (d.projected) launcher_.transpose(p_.weights.w_hr, d.P, d.H, w_hr_t_);
        std::int64_t later = -1;
        for (std::int64_t step = 0; step < total; ++step) {
            const std::int64_t t = p_.schedule.reverse ? step : total - 1 - step;
            run_step(t, later);
            later = t;
        }
        run_step(-1, later);
    }

    // In one launch.
    template <class Args>
    Args all_steps() const {
        Args args{};
        args.w_hh = p_.weights.w_hh;
        args.source = state_source(p_);
        args.schedule = schedule_.device;
        args.states = p_.states, args.saved = saved_;
        args.dy = p_.dy;
        std::copy_n(p_.dfinal, kMaxStates, args.dfinal);
        std::copy_n(p_.dinitial, kMaxStates, args.dinitial);
        args.dgx = dgx_, args.dgh = dgh_;
        return args;
    }

    // Step t after step `later` of the sweep; -1: none. Without a t only the initial state's gradients are
    // left.
    void run_step(std::int64_t t, std::int64_t later) {
        const Dims& d = p_.dims;
        StepBackwardArgs args{};
        args.source = state_source(p_);
        args.order = schedule_.device.order;
        args.rows = t < 0 ? 0 : static_cast<int>(schedule_.active(t));
        args.later_rows = later < 0 ? 0 : static_cast<int>(schedule_.active(later));
        if (t >= 0) args.now = schedule_.moment(t);
        if (later >= 0) args.later = schedule_.moment(later);
        if (t >= 0) args.dy = offset_bytes(p_.dy.data, t * p_.dy.t_stride * item_);
        args.dy_stride = p_.dy.b_stride;
        std::copy_n(p_.dfinal, kMaxStates, args.dfinal);
        std::copy_n(p_.dinitial, kMaxStates, args.dinitial);
        args.product_w = w_hh_t_;
        args.product_rows = later < 0 ? nullptr : gate_gradients(later);
        args.k = static_cast<int>(gates_);
        args.carry = carry_;
        if (t >= 0) set_tape(args, t);
        if (d.projected) project_gradients(args, t);
        if (by_library_ && later >= 0) args.product = multiply_step(later);
        const bool vector = launcher_.is_vector(args.product_w, args.k, args.k) &&
                            launcher_.is_vector(args.product_rows, args.k, args.k);
        launcher_.step(launcher_.entries().cells[p_.cell].backward, args, vector,
                       std::max(args.rows, args.later_rows), d.H, args.k);
    }

    // The gate gradients of step t times W_hh.
    const void* multiply_step(std::int64_t t) const {
        const Dims& d = p_.dims;
        Product product{};
        product.layout = Layout::kNT;
        product.m = d.B, product.n = d.H, product.k = gates_;
        product.a = {gate_gradients(t), gates_};
        product.b = {w_hh_t_, gates_};
        product.c = product_, product.c_stride = d.H;
        launcher_.multiply(product, partial_);
        return product_;
    }

    void set_tape(StepBackwardArgs& args, std::int64_t t) const {
        const std::int64_t H = p_.dims.H, offset = schedule_.offset(t), beyond = traits_.states - 1;
        const std::int64_t before = p_.schedule.reverse ? t + 1 : t - 1;
        if (before >= 0 && before < p_.dims.T) {
            args.states_before = offset_bytes(p_.states, schedule_.offset(before) * beyond * H * compute_);
        }
        args.saved = offset_bytes(saved_, offset * H * traits_.saved * compute_);
        args.dgh = offset_bytes(dgh_, offset * gates_ * item_);
        args.dgx = offset_bytes(dgx_, offset * gates_ * item_);
    }

    // First the gradient of the output, kept for dW_hr; what is left of the step is then a product of that
    // with W_hr.
    void project_gradients(StepBackwardArgs& args, std::int64_t t) {
        const Dims& d = p_.dims;
        OutputGradientArgs output{};
        output.w_hh_t = args.product_w;
        output.dgh = args.product_rows;
        output.k = args.k;
        output.source = args.source;
        output.later = args.later;
        output.order = args.order;
        output.rows = args.rows, output.later_rows = args.later_rows;
        output.dy = args.dy;
        output.dy_stride = args.dy_stride;
        output.dfinal = args.dfinal[0];
        output.dinitial = args.dinitial[0];
        output.dout = t < 0 ? nullptr : offset_bytes(dout_, schedule_.offset(t) * d.P * item_);
        const bool vector = launcher_.is_vector(output.w_hh_t, output.k, output.k) &&
                            launcher_.is_vector(output.dgh, output.k, output.k);
        launcher_.step(launcher_.entries().output_gradient, output, vector,
                       std::max(output.rows, output.later_rows), d.P, output.k);
        args.projected = true;
        args.product_w = w_hr_t_;
        args.product_rows = output.dout;
        args.k = static_cast<int>(d.P);
    }

    // dx = dgx W_ih, of the sequence or, where inputs are looked up, of the table.
    void input_gradients() {
        if (p_.dx.data == nullptr) return;
        const Dims& d = p_.dims;
        const MathEntries& entries = launcher_.entries();
        RowsArgs move{};
        move.schedule = schedule_.device;
        move.n = d.I;
        move.to = p_.dx;
        if (d.V == 0 && !schedule_.uniform() && !p_.accumulate_dx)
            launcher_.move_rows(entries.clear_padding, move, d.T);
        const bool direct = dx_stride_ != 0;
        Product product{};
        product.layout = Layout::kNN;
        product.m = input_rows_, product.n = d.I, product.k = gates_;
        product.a = {input_gates_, gates_};
        product.b = {p_.weights.w_ih, d.I};
        product.c = direct ? p_.dx.data : dx_rows_;
        product.c_stride = direct ? dx_stride_ : d.I;
        product.accumulate = direct && p_.accumulate_dx;
        launcher_.multiply(product, partial_);
        if (direct) return;
        if (d.V > 0) {
            sums_.run(dx_rows_, d.I, p_.dx.data, p_.dx.b_stride, p_.accumulate_dx);
            return;
        }
        move.compact = dx_rows_;
        move.accumulate = p_.accumulate_dx;
        launcher_.move_rows(entries.scatter_rows, move, schedule_.longest());
    }

    // c += a^T b over so many rows.
    void add_outer(void* c, const void* a, std::int64_t m, Matrix b, std::int64_t n, std::int64_t rows) {
        Product product{};
        product.layout = Layout::kTN;
        product.m = m, product.n = n, product.k = rows;
        product.a = {a, m};
        product.b = b;
        product.c = c;
        product.c_stride = n;
        product.accumulate = true;
        launcher_.multiply(product, partial_);
    }

    void weight_gradients() {
        if (rows_ == 0) return;
        const Dims& d = p_.dims;
        const WeightGradients& to = p_.dparams;
        if (to.w_ih != nullptr) add_outer(to.w_ih, input_gates_, gates_, inputs_.all(), d.I, input_rows_);
        if (to.w_hh != nullptr) add_outer(to.w_hh, dgh_, gates_, {hidden_before_, d.P}, d.P, rows_);
        if (d.projected && to.w_hr != nullptr) add_outer(to.w_hr, dout_, d.P, {p_.hidden, d.H}, d.H, rows_);
        void* const from_x[2] = {to.b_ih, traits_.split_gates ? nullptr : to.b_hh};
        launcher_.add_column_sums(dgx_, rows_, gates_, from_x, partial_);
        if (!traits_.split_gates) return;
        void* const from_h[2] = {to.b_hh, nullptr};
        launcher_.add_column_sums(dgh_, rows_, gates_, from_h, partial_);
    }

    bool reads_hidden() const { return p_.dparams.w_hh != nullptr || Recompute::is_needed(p_); }
    // What the recurrent product of each row read.
    void gather_hidden() {
        if (rows_ == 0 || !reads_hidden()) return;
        const GatherHiddenArgs args{schedule_.device, state_source(p_), hidden_before_};
        launcher_.start(launcher_.entries().gather_hidden,
                        launcher_.rows_shape(schedule_.longest(), p_.dims.B), args);
    }

    const BackwardProblem& p_;
    Launcher launcher_;
    Arena arena_;
    ScheduleCopy schedule_;
    const CellTraits& traits_;
    Inputs inputs_;
    InputSums sums_;
    Recompute recompute_;
    const void* saved_;
    std::int64_t item_, compute_, gates_, rows_, input_rows_, dx_stride_;
    void *w_hh_t_, *w_hr_t_, *carry_, *dgh_, *dgx_, *dout_, *hidden_before_, *dx_rows_, *partial_;
    bool by_library_;
    void* product_;
    void* input_gates_;  // dgx of input_rows_ rows: the inputs, or the table that stands for them
    std::optional<Persistent> persistent_;
    std::optional<ClusterPlan> cluster_;
};

}  // namespace

std::int64_t backward_by_steps_workspace(const BackwardProblem& problem) {
    return Backward(problem, Way::steps, nullptr, nullptr).bytes();
}
std::int64_t backward_persistent_workspace(const BackwardProblem& problem) {
    return Backward(problem, Way::persistent, nullptr, nullptr).bytes();
}
std::int64_t backward_cluster_workspace(const BackwardProblem& problem) {
    return Backward(problem, Way::cluster, nullptr, nullptr).bytes();
}

void backward_by_steps(const BackwardProblem& problem, void* workspace, Stream stream) {
    Graphs::all().run(problem, workspace, backward_by_steps_workspace(problem), stream,
                      [&](Stream on) { Backward(problem, Way::steps, workspace, on).run(); });
}
void backward_persistent(const BackwardProblem& problem, void* workspace, Stream stream) {
    Backward(problem, Way::persistent, workspace, stream).run();
}
void backward_cluster(const BackwardProblem& problem, void* workspace, Stream stream) {
    Backward(problem, Way::cluster, workspace, stream).run();
}

}  // namespace fusedrnn::cuda
