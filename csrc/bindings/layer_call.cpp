#include "bindings/layer_call.h"

#include "bindings/backward_call.h"
#include "bindings/bindings.h"
#include "bindings/forward_call.h"
#include "bindings/run.h"

namespace fusedrnn {
namespace {

using Calls = std::vector<std::shared_ptr<LayerCall>>;

void run_alone(LayerCall& call) {
    const CallCost cost = call.cost();
    Team team(recurrent_threads(cost.dims, cost.gates, cost.backward));
    const AlignedBuffer workspace(call.workspace(team.size()));
    run_released(team, [&] { call.run(team, workspace.data()); });
}

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

// Call i on member i % size, each with a team of its own.
void run_beside(const Calls& calls, bool chained, int members) {
    for (std::size_t i = 0; i < calls.size(); ++i) {
        if (!chained) {
            calls[i]->part();
        } else if (i > 0) {
            calls[i]->follow(*calls[i - 1]);
        }
    }
    std::vector<AlignedBuffer> workspaces;
    for (const auto& call : calls) workspaces.emplace_back(call->workspace(1));
    struct Context {
        const Calls& calls;
        const std::vector<AlignedBuffer>& workspaces;
        Team& team;
    };
    Team team(members);
    Context context{calls, workspaces, team};
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

}  // namespace

void run_calls(const Calls& calls) {
    std::vector<CallCost> costs;
    for (const auto& call : calls) {
        for (const auto& other : calls) {
            if (&other != &call && other == call)
                throw py::value_error("calls: expected different calls, got one twice");
        }
        costs.push_back(call->cost());
    }
    for (const auto& call : calls) {
        if (call->started.exchange(true)) {
            throw py::value_error("calls: expected calls that have not run, got one that has");
        }
    }
    const bool chained = calls.size() > 1 && each_follows(calls);
    const int members = concurrent_members(costs.data(), static_cast<int>(costs.size()), chained);
    if (members > 1 && (chained || all_independent(calls))) {
        run_beside(calls, chained, members);
    } else {
        for (const auto& call : calls) run_alone(*call);
    }
}

}  // namespace fusedrnn
