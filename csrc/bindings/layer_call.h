// A call of the kernels for one layer and direction, checked and ready to run, and how several of them share the threads.
#pragma once

#include <atomic>
#include <memory>
#include <vector>

#include "bindings/recurrent.h"
#include "cpu/partition.h"

namespace fusedrnn {

// A call that runs once. Making it checks every argument, makes the arrays it returns and packs the weights.
class LayerCall {
  public:
    virtual ~LayerCall() = default;

    virtual CallCost cost() const = 0;
    // Bytes of workspace for a team of so many, and the kernels themselves, to be called without the GIL.
    virtual std::int64_t workspace(int threads) const = 0;
    virtual void run(Team& team, void* workspace) = 0;
    // (y, final state, tape) or (dx, dstate, dparams).
    virtual py::tuple result() const = 0;

    // Whether nothing that one of the two writes is read or written by the other, but for what join() is for.
    virtual bool independent(const LayerCall& other) const = 0;
    // Whether x is the output of `before`, step for step; follow() makes run() wait for it.
    virtual bool follows(const LayerCall&) const { return false; }
    virtual void follow(LayerCall& before) { static_cast<void>(before); }
    // Before running beside other calls: what is to be added to an array that they write goes to memory of its own.
    virtual void part() {}
    // Afterwards: adds it. A team's share each.
    virtual void join(int member, int members) { static_cast<void>(member), static_cast<void>(members); }

    std::atomic<bool> started{false};
};

// A (T, B, n) array, or a table (V, n) whose row v is row(0, v).
template <class T>
Sequence<const T> sequence(const Array& a) {
    return {a.data<T>(), a.ndim() == 3 ? a.stride(0) : 0, a.stride(a.ndim() - 2)};
}
template <class T>
Sequence<T> writable_sequence(const Array& a) {
    return {a.mutable_data<T>(), a.ndim() == 3 ? a.stride(0) : 0, a.stride(a.ndim() - 2)};
}

// What forward and backward both take as options.
template <class T, class Problem>
void set_options(Problem& problem, const CallArrays& arrays) {
    if (arrays.index != nullptr) problem.index = arrays.index->data();
    problem.draws = arrays.draws;
    for (int k = 0; k < problem.cell->states; ++k) {
        problem.reset[k] = arrays.reset[k].data<T>();
        problem.reset_stride[k] = reset_stride(arrays.reset[k], problem.dims, k);
    }
}

// Calls in stages, which run one after another. Making it takes all memory that they need, so that nothing but Ctrl-C can
// stop them once the first has written.
class StagedCalls {
  public:
    using Calls = std::vector<std::shared_ptr<LayerCall>>;

    explicit StagedCalls(std::vector<Calls> stages);
    // Runs each call of the next stage on a team of its own, one after another, or, where the cost model says so and none
    // stands in another's way, all at the same time on a thread each. Returns the calls.
    const Calls& run();
    // Runs all stages, and nothing can stop them halfway, if that takes a moment only; says whether. Each run() then returns
    // the calls of the next stage, which have run.
    bool run_if_short();

  private:
    struct Stage {
        Calls calls;
        int members;               // that run calls at the same time; 1: one call after another
        std::vector<int> threads;  // of each call that runs on its own
    };

    void run_stage(const Stage& stage);
    void run_in_turn(const Stage& stage);
    void run_beside(const Stage& stage);

    std::vector<Stage> stages_;
    std::vector<AlignedBuffer> workspaces_;  // i for call i beside others, 0 for calls on their own
    std::size_t next_ = 0;
    double work_ = 0;  // multiply-adds
    bool running_ = false, have_run_ = false;
};

// Runs a call that is beside no others.
void run_alone(LayerCall& call);

}  // namespace fusedrnn
