// Forward over a whole sequence: the input projection of a block of steps as one product, then the steps of the
// block by a family of kernels.
#include <algorithm>

#include "graphs.h"
#include "inputs.h"
#include "kernel_table.h"

namespace fusedrnn::cuda {

namespace {

class Forward {
  public:
    Forward(const ForwardProblem& problem, const Kernel& kernel, void* workspace, Stream stream)
        : p_(problem),
          launcher_(problem.math, stream),
          arena_(workspace),
          schedule_(problem.dims, problem.schedule, arena_),
          traits_(*problem.cell),
          gates_(traits_.gates * problem.dims.H),
          block_steps_(input_block_steps(problem.dims, gates_, problem.math)),
          inputs_(problem, block_steps_, true, launcher_, schedule_, arena_),
          pass_{problem, launcher_, schedule_, traits_, gates_, block_steps_, nullptr, nullptr, nullptr} {
        const Dims& d = p_.dims;
        check_problem(*p_.cell, d);
        const std::int64_t compute = compute_bytes(p_.math);
        pass_.gx = arena_.take(block_steps_ * d.B * gates_ * compute);
        void* const states =
            arena_.take(p_.states != nullptr ? 0 : d.B * (traits_.states - 1) * d.H * compute);
        pass_.states = p_.states != nullptr ? p_.states : states;
        if (d.B > 0 && d.T > 0) steps_ = kernel.forward_steps(pass_, arena_);
        pass_.partial = arena_.take(
            std::max(inputs_.partial_bytes(block_steps_), steps_ == nullptr ? 0 : steps_->partial_bytes()));
    }

    std::int64_t bytes() const { return arena_.used(); }

    void run() {
        const Dims& d = p_.dims;
        if (d.B == 0) return;
        schedule_.send(launcher_.stream());
        inputs_.prepare(pass_.partial);
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
            inputs_.project(first, count, pass_.gx, pass_.partial);
            steps_->run(first, count);
        }
        store_final();
    }

  private:
    void store_final() {
        FinalStateArgs args{};
        args.schedule = schedule_.device;
        args.y = {p_.y.data, p_.y.t_stride, p_.y.b_stride};
        args.states = pass_.states;
        args.states_by_index = p_.states != nullptr;
        for (int k = 0; k < kMaxStates; ++k) {
            args.initial[k] = p_.initial[k];
            args.final[k] = p_.final[k];
        }
        args.H = p_.dims.H, args.P = p_.dims.P;
        args.beyond = traits_.states - 1;
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
    const CellTraits& traits_;
    std::int64_t gates_, block_steps_;
    Inputs inputs_;
    ForwardPass pass_;
    std::unique_ptr<ForwardSteps> steps_;
};

}  // namespace

std::int64_t Kernel::forward_workspace(const ForwardProblem& problem) const {
    return Forward(problem, *this, nullptr, nullptr).bytes();
}

void Kernel::forward(const ForwardProblem& problem, void* workspace, Stream stream) const {
    const auto launches = [&](Stream on) { Forward(problem, *this, workspace, on).run(); };
    // Masks are others in each call.
    if (!launches_every_step || problem.draws.drawn) return launches(stream);
    Graphs::all().run(problem, workspace, forward_workspace(problem), stream, launches);
}

}  // namespace fusedrnn::cuda
