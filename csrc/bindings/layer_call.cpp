#include "bindings/layer_call.h"

#include <algorithm>

#include "bindings/backward_call.h"
#include "bindings/bindings.h"
#include "bindings/forward_call.h"
#include "bindings/run.h"

namespace fusedrnn {
namespace {

using Calls = StagedCalls::Calls;

bool each_follows(const Calls& calls) {
    for (std::size_t i = 1; i < calls.size(); ++i) {
        if (!calls[i]->follows(*calls[i - 1])) return false;
    }
    return true;
}

bool all_independent(const Calls& calls) {
    for (std::size_t i = 0; i < calls.size(); ++i) {
        for (std::size_t k = 0; k < i; ++k) {
            if (!calls[i]->independent(*calls[k])) return false;
        }
    }
    return true;
}

py::value_error has_run() {
    return py::value_error("calls: expected calls that have not run, got one that has");
}

}  // namespace

StagedCalls::StagedCalls(std::vector<Calls> stages) {
    std::vector<LayerCall*> seen;
    std::vector<std::int64_t> bytes(1, 0);
    for (Calls& calls : stages) {
        std::vector<CallCost> costs;
        for (const auto& call : calls) {
            if (call->started) throw has_run();
            if (std::find(seen.begin(), seen.end(), call.get()) != seen.end())
                throw py::value_error("calls: expected different calls, got one twice");
            seen.push_back(call.get());
            costs.push_back(call->cost());
            const auto& [d, gates, backward] = costs.back();
            work_ += static_cast<double>(d.T * d.B) * gates * static_cast<double>(d.H * (d.I + d.P)) *
                     (1 + backward);
        }
        const bool chained = calls.size() > 1 && each_follows(calls);
        int members = concurrent_members(costs.data(), static_cast<int>(costs.size()), chained);
        if (!chained && members > 1 && !all_independent(calls)) members = 1;
        Stage stage{std::move(calls), members, {}};
        for (std::size_t i = 0; i < stage.calls.size(); ++i) {
            LayerCall& call = *stage.calls[i];
            if (members > 1) {
                if (!chained) {
                    call.part();
                } else if (i > 0) {
                    call.follow(*stage.calls[i - 1]);
                }
                bytes.resize(std::max(bytes.size(), i + 1), 0);
                bytes[i] = std::max(bytes[i], call.workspace(1));
            } else {
                const auto& [dims, gates, backward] = costs[i];
                const int threads = recurrent_threads(dims, gates, backward);
                stage.threads.push_back(threads);
                // The team may turn out to be the caller alone.
                bytes[0] = std::max({bytes[0], call.workspace(1), call.workspace(threads)});
            }
        }
        stages_.push_back(std::move(stage));
    }
    for (const std::int64_t n : bytes) workspaces_.emplace_back(n);
    for (LayerCall* call : seen) {
        if (call->started.exchange(true)) throw has_run();
    }
}

const Calls& StagedCalls::run() {
    if (running_) throw std::runtime_error("calls: expected one thread to run them, got two");
    if (next_ == stages_.size()) throw py::value_error("calls: expected a stage that has not run, got none");
    const Stage& stage = stages_[next_++];
    struct Running {
        explicit Running(bool& flag) : flag(flag) { flag = true; }
        ~Running() { flag = false; }
        bool& flag;
    } const running(running_);
    if (!have_run_) run_stage(stage);
    return stage.calls;
}

bool StagedCalls::run_if_short() {
    constexpr double kShort = 1 << 22;  // a millisecond
    if (work_ > kShort || next_ > 0 || have_run_) return false;
    have_run_ = true;
    const SignalsWait wait;
    for (const Stage& stage : stages_) run_stage(stage);
    return true;
}

void StagedCalls::run_stage(const Stage& stage) {
    if (stage.members > 1) {
        run_beside(stage);
    } else {
        run_in_turn(stage);
    }
}

void StagedCalls::run_in_turn(const Stage& stage) {
    for (std::size_t i = 0; i < stage.calls.size(); ++i) {
        Team team(stage.threads[i]);
        run_released(team, [&] { stage.calls[i]->run(team, workspaces_[0].data()); });
    }
}

// Call i on member i % size, each with a team of its own.
void StagedCalls::run_beside(const Stage& stage) {
    struct Context {
        const Calls& calls;
        const std::vector<AlignedBuffer>& workspaces;
        Team& team;
    };
    Team team(stage.members);
    Context context{stage.calls, workspaces_, team};
    run_released(team, [&] {
        team.run(
            [](void* data, int member) {
                auto& c = *static_cast<Context*>(data);
                Team alone(c.team, member);
                for (std::size_t i = member; i < c.calls.size(); i += c.team.size()) {
                    c.calls[i]->run(alone, c.workspaces[i].data());
                }
                if (!c.team.barrier(member)) return;
                for (const auto& call : c.calls) call->join(member, c.team.size());
            },
            &context);
    });
}

void run_alone(LayerCall& call) {
    const auto [dims, gates, backward] = call.cost();
    Team team(recurrent_threads(dims, gates, backward));
    const AlignedBuffer workspace(call.workspace(team.size()));
    run_released(team, [&] { call.run(team, workspace.data()); });
}

}  // namespace fusedrnn
