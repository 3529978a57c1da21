// The time steps of a call, between the products before and after them: what a family of kernels does its own way.
//
// The drivers, forward.cpp and backward.cpp, do what all families share, take the workspace and hand over a pass;
// step.cpp, persistent.cpp and cluster.cpp each run its steps.
#pragma once

#include <memory>

#include "launches.h"

namespace fusedrnn::cuda {

// What is the same for all steps of a call. Memory is null while the workspace is only measured.
struct ForwardPass {
    const ForwardProblem& problem;
    const Launcher& launcher;
    const ScheduleCopy& schedule;
    const CellTraits& traits;
    std::int64_t gates;        // G*H
    std::int64_t block_steps;  // of a run, at most
    void* gx;                  // C [compact index, from the first step of a run on][G*H]: W_ih x + b
    void* states;              // the tape's, or C [position][kStates - 1][H] without one
    void* partial;             // of products
};

class ForwardSteps {
  public:
    virtual ~ForwardSteps() = default;
    // Of its products.
    virtual std::int64_t partial_bytes() const { return 0; }
    // The steps [first, first + count), whose gx is made; those before them, in the direction of time, are done.
    virtual void run(std::int64_t first, std::int64_t count) const = 0;
};

struct BackwardPass {
    const BackwardProblem& problem;
    const Launcher& launcher;
    const ScheduleCopy& schedule;
    const CellTraits& traits;
    std::int64_t gates;
    const void* saved;  // the tape's, or computed again
    void *dgx, *dgh;    // T [compact index][G*H]; the same where the gates are not split
    void* dout;         // T [compact index][P], with a projection
    // Of cells that are data.
    const void* moments;   // the tape's, or computed again
    void* unit_gradients;  // T [compact index][values][H]
    void* operands;        // T [product][compact index][H]: what products within a step took
    void* partial;

    // The gates' gradients of step t.
    const void* gate_gradients(std::int64_t t) const {
        return offset_bytes(dgh, schedule.offset(t) * gates * storage_bytes(problem.math));
    }
    // run(t, later) of all steps against the direction of time, each after step `later` of the sweep; -1: none. At the end
    // without a t, for the initial state.
    template <class Run>
    void sweep(const Run& run) const {
        const std::int64_t total = schedule.longest();
        std::int64_t later = -1;
        for (std::int64_t step = 0; step < total; ++step) {
            const std::int64_t t = problem.schedule.reverse ? step : total - 1 - step;
            run(t, later);
            later = t;
        }
        run(-1, later);
    }
    // The gradient of the output of step t, kept for dW_hr, of which that of h is a product with W_hr; `args`: the step's.
    template <class Args>
    void* output_gradient(const Args& args, const void* w_hh_t, int k, std::int64_t t,
                          std::int64_t later) const {
        const std::int64_t P = problem.dims.P;
        OutputGradientArgs output{};
        output.w_hh_t = w_hh_t;
        output.dgh = later < 0 ? nullptr : gate_gradients(later);
        output.k = k;
        output.source = args.source;
        output.later = args.later;
        output.order = args.order;
        output.rows = args.rows, output.later_rows = args.later_rows;
        output.dy = args.dy, output.dy_stride = args.dy_stride;
        output.dfinal = args.dfinal[0], output.dinitial = args.dinitial[0];
        output.dout =
            t < 0 ? nullptr : offset_bytes(dout, schedule.offset(t) * P * storage_bytes(problem.math));
        launcher.output_gradient(output, P);
        return output.dout;
    }
};

class BackwardSteps {
  public:
    virtual ~BackwardSteps() = default;
    virtual std::int64_t partial_bytes() const { return 0; }
    // All steps, against the direction of time.
    virtual void run() const = 0;
};

// Each family's steps, with what workspace they need. They refer to the pass, whose memory may be set later, and there
// is at least a row and a step.
std::unique_ptr<ForwardSteps> step_forward_steps(const ForwardPass& pass, Arena& arena);
std::unique_ptr<BackwardSteps> step_backward_steps(const BackwardPass& pass, Arena& arena);
std::unique_ptr<ForwardSteps> program_forward_steps(const ForwardPass& pass, Arena& arena);
std::unique_ptr<BackwardSteps> program_backward_steps(const BackwardPass& pass, Arena& arena);
// Once more: what the steps keep for backward, and nothing else of what they give.
std::unique_ptr<ForwardSteps> program_replay_steps(const ForwardPass& pass, Arena& arena);
std::unique_ptr<ForwardSteps> persistent_forward_steps(const ForwardPass& pass, Arena& arena);
std::unique_ptr<BackwardSteps> persistent_backward_steps(const BackwardPass& pass, Arena& arena);
std::unique_ptr<ForwardSteps> cluster_forward_steps(const ForwardPass& pass, Arena& arena);
std::unique_ptr<BackwardSteps> cluster_backward_steps(const BackwardPass& pass, Arena& arena);

// Of kernels that run many steps in one launch; `Args` adds to them.
template <class Args>
Args sweep_arguments(const ForwardPass& pass, std::int64_t first, std::int64_t count) {
    const ForwardProblem& p = pass.problem;
    Args args{};
    args.w_hh = p.weights.w_hh;
    args.b_hh = p.weights.b_hh;
    args.source = state_source(p);
    args.schedule = pass.schedule.device;
    args.first = first, args.count = count;
    args.gx = pass.gx;
    args.y = p.y;
    args.states = pass.states;
    args.states_by_index = p.states != nullptr;
    args.saved = p.saved;
    return args;
}
template <class Args>
Args sweep_arguments(const BackwardPass& pass) {
    const BackwardProblem& p = pass.problem;
    Args args{};
    args.w_hh = p.weights.w_hh;
    args.source = state_source(p);
    args.schedule = pass.schedule.device;
    args.states = p.states, args.saved = pass.saved;
    args.dy = p.dy;
    std::copy_n(p.dfinal, kMaxStates, args.dfinal);
    std::copy_n(p.dinitial, kMaxStates, args.dinitial);
    args.dgx = pass.dgx, args.dgh = pass.dgh;
    return args;
}

}  // namespace fusedrnn::cuda
