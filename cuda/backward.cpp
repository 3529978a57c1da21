// Backward over a whole sequence: a sweep through the steps by a family of kernels, which leaves the gradients of
// the gates, then the products that give all other gradients from them.
#include <algorithm>

#include "graphs.h"
#include "inputs.h"
#include "kernel_table.h"
#include "recompute.h"

namespace fusedrnn::cuda {

namespace {

class Backward {
  public:
    Backward(const BackwardProblem& problem, const Kernel& kernel, void* workspace, Stream stream)
        : p_(problem),
          launcher_(problem.math, stream),
          arena_(workspace),
          schedule_(problem.dims, problem.schedule, arena_),
          traits_(*problem.cell),
          inputs_(problem,
                  problem.dparams.w_ih != nullptr || Recompute::is_needed(problem) ? problem.dims.T : 0,
                  Recompute::is_needed(problem), launcher_, schedule_, arena_),
          sums_(problem, launcher_, schedule_, arena_),
          recompute_(problem, launcher_, schedule_, inputs_, arena_),
          gates_(traits_.gates * problem.dims.H),
          pass_{problem, launcher_, schedule_,       traits_, gates_,  problem.saved, nullptr,
                nullptr, nullptr,   problem.moments, nullptr, nullptr, nullptr} {
        const Dims& d = p_.dims;
        check_problem(*p_.cell, d);
        item_ = storage_bytes(p_.math);
        rows_ = schedule_.rows();
        const bool by_table = inputs_.by_table();
        input_rows_ = by_table ? d.V : rows_;
        if (d.V == 0) {
            dx_stride_ = matrix_stride(schedule_, p_.dx.t_stride, p_.dx.b_stride);
        } else {
            dx_stride_ = !by_table ? 0 : d.V == 1 ? d.I : p_.dx.b_stride;
        }
        pass_.dgh = arena_.take(rows_ * gates_ * item_);
        pass_.dgx = traits_.split_gates ? arena_.take(rows_ * gates_ * item_) : pass_.dgh;
        input_gates_ = by_table ? arena_.take(d.V * gates_ * item_) : pass_.dgx;
        if (const DevicePrograms* const programs = p_.cell->programs; programs != nullptr) {
            pass_.unit_gradients = arena_.take(rows_ * traits_.per_unit * d.H * item_);
            pass_.operands = arena_.take(programs->cell.products * rows_ * d.H * item_);
        }
        pass_.dout = arena_.take(d.projected ? rows_ * d.P * item_ : 0);
        hidden_before_ = arena_.take(reads_hidden() ? rows_ * d.P * item_ : 0);
        dx_rows_ = arena_.take(p_.dx.data != nullptr && dx_stride_ == 0 ? rows_ * d.I * item_ : 0);
        if (d.B > 0 && d.T > 0) steps_ = kernel.backward_steps(pass_, arena_);
        pass_.partial = arena_.take(std::max(
            {recompute_.partial_bytes(), launcher_.partial_bytes(rows_, d.I, gates_),
             launcher_.partial_bytes(gates_, d.I, rows_), launcher_.partial_bytes(gates_, d.P, rows_),
             d.projected ? launcher_.partial_bytes(d.P, d.H, rows_) : 0,
             launcher_.column_bytes(rows_, gates_),
             traits_.per_unit > 0 ? launcher_.column_bytes(rows_, d.H) : 0,
             steps_ == nullptr ? 0 : steps_->partial_bytes()}));
    }

    std::int64_t bytes() const { return arena_.used(); }

    void run() {
        const Dims& d = p_.dims;
        schedule_.send(launcher_.stream());
        inputs_.prepare(pass_.partial);
        sums_.send();
        if (d.B > 0) sweep();
        if (inputs_.by_table()) sums_.run(pass_.dgx, gates_, input_gates_, gates_, false);
        input_gradients();
        weight_gradients();
    }

  private:
    void sweep() {
        pass_through_empty_rows();
        gather_hidden();
        if (Recompute::is_needed(p_)) {
            recompute_.run(hidden_before_, pass_.partial);
            pass_.saved = recompute_.saved(), pass_.moments = recompute_.moments();
        }
        if (steps_ != nullptr) steps_->run();
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
        launcher_.multiply(product, pass_.partial);
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
    void add_outer(void* c, Matrix a, std::int64_t m, Matrix b, std::int64_t n, std::int64_t rows) {
        Product product{};
        product.layout = Layout::kTN;
        product.m = m, product.n = n, product.k = rows;
        product.a = a;
        product.b = b;
        product.c = c;
        product.c_stride = n;
        product.accumulate = true;
        launcher_.multiply(product, pass_.partial);
    }

    void weight_gradients() {
        if (rows_ == 0) return;
        const Dims& d = p_.dims;
        const WeightGradients& to = p_.dparams;
        if (to.w_ih != nullptr)
            add_outer(to.w_ih, {input_gates_, gates_}, gates_, inputs_.all(), d.I, input_rows_);
        if (to.w_hh != nullptr) hidden_weight_gradients(to.w_hh);
        if (d.projected && to.w_hr != nullptr)
            add_outer(to.w_hr, {pass_.dout, d.P}, d.P, {p_.hidden, d.H}, d.H, rows_);
        unit_gradients();
        void* const from_x[2] = {to.b_ih, traits_.split_gates ? nullptr : to.b_hh};
        launcher_.add_column_sums({pass_.dgx, gates_}, rows_, gates_, from_x, pass_.partial);
        if (!traits_.split_gates) return;
        void* const from_h[2] = {to.b_hh, nullptr};
        launcher_.add_column_sums({pass_.dgh, gates_}, rows_, gates_, from_h, pass_.partial);
    }

    // Those of gates whose product takes another operand than h come from that.
    void hidden_weight_gradients(void* to) {
        const Dims& d = p_.dims;
        const auto add = [&](int first_gate, int count, const void* operand) {
            const std::int64_t first = first_gate * d.H;
            add_outer(offset_bytes(to, first * d.P * compute_bytes(p_.math)),
                      {offset_bytes(static_cast<const void*>(pass_.dgh), first * item_), gates_}, count * d.H,
                      {operand, d.P}, d.P, rows_);
        };
        const DevicePrograms* const programs = p_.cell->programs;
        if (programs == nullptr) return add(0, traits_.gates, hidden_before_);
        if (programs->hidden_gates() > 0) add(0, programs->hidden_gates(), hidden_before_);
        for (const RowOperation& o : programs->products) {
            const void* const operands = pass_.operands;
            add(o.first_gate, o.count, offset_bytes(operands, o.number * rows_ * d.H * item_));
        }
    }

    void unit_gradients() {
        std::int64_t value = 0, unit = 0;
        for (int i = 0; i < traits_.parameter_count; ++i) {
            const Parameter& each = traits_.parameters[i];
            if (each.role != Role::kPerUnit) continue;
            const std::int64_t H = p_.dims.H;
            void* const to[2] = {p_.dparams.units[unit++], nullptr};
            const Matrix gradients{
                offset_bytes(static_cast<const void*>(pass_.unit_gradients), value * H * item_),
                traits_.per_unit * H};
            launcher_.add_column_sums(gradients, rows_, each.rows.times * H, to, pass_.partial);
            value += each.rows.times;
        }
    }

    bool reads_hidden() const { return p_.dparams.w_hh != nullptr || Recompute::is_needed(p_); }
    // What the recurrent product of each row read.
    void gather_hidden() {
        if (rows_ == 0 || !reads_hidden()) return;
        const GatherHiddenArgs args{schedule_.device, 0, state_source(p_), hidden_before_};
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
    const std::int64_t gates_;
    BackwardPass pass_;
    std::int64_t item_, rows_, input_rows_, dx_stride_;
    void *hidden_before_, *dx_rows_;
    void* input_gates_;  // dgx of input_rows_ rows: the inputs, or the table that stands for them
    std::unique_ptr<BackwardSteps> steps_;
};

}  // namespace

std::int64_t Kernel::backward_workspace(const BackwardProblem& problem) const {
    return Backward(problem, *this, nullptr, nullptr).bytes();
}

void Kernel::backward(const BackwardProblem& problem, void* workspace, Stream stream) const {
    const auto launches = [&](Stream on) { Backward(problem, *this, workspace, on).run(); };
    // Masks are others in each call.
    if (!launches_every_step || problem.draws.drawn) return launches(stream);
    Graphs::all().run(problem, workspace, backward_workspace(problem), stream, launches);
}

}  // namespace fusedrnn::cuda
