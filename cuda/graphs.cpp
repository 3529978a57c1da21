#include "graphs.h"

#include <algorithm>

#include "launches.h"

namespace fusedrnn::cuda {

// Never destroyed: the driver may be gone before it would be.
Graphs& Graphs::all() {
    static Graphs& made = *new Graphs;
    return made;
}

Graphs::~Graphs() {
    for (const Entry& entry : entries_) destroy_graph(entry.graph);
}

void Graphs::run(const Problem& problem, void* workspace, std::int64_t workspace_bytes, Stream stream,
                 const Launches& launches) {
    Call call{problem, workspace, workspace_bytes, 0};
    const auto [math, fits] = std::visit(
        [](auto& p) {
            const bool uniform = p.dims.T > 0 && p.schedule.active[p.dims.T - 1] == p.dims.B;
            // The same for all calls of these sizes, wherever the host has it.
            p.schedule.order = p.schedule.active = p.schedule.offset = p.schedule.length = nullptr;
            return std::pair(p.math, uniform && p.dims.V == 0 && p.dims.T <= kMostSteps);
        },
        call.problem);
    if (!fits || is_capturing(stream)) return launches(stream);
    call.device = current_device().index;
    {
        const std::lock_guard lock(mutex_);
        if (const Graph graph = find(call, launches)) {
            if (launch_observer != nullptr) launch_observer(math, "graph", "");
            return launch_graph(graph, stream);
        }
    }
    launches(stream);
}

Graph Graphs::find(const Call& call, const Launches& launches) {
    const auto found = std::find_if(entries_.begin(), entries_.end(),
                                    [&](const Entry& entry) { return entry.call == call; });
    if (found == entries_.end()) {
        entries_.push_front({call});
        if (entries_.size() > kMostCalls) {
            destroy_graph(entries_.back().graph);
            entries_.pop_back();
        }
        return nullptr;
    }
    entries_.splice(entries_.begin(), entries_, found);
    Entry& entry = entries_.front();
    if (entry.graph == nullptr && !entry.refused) {
        entry.graph = capture(launches);
        entry.refused = entry.graph == nullptr;
    }
    return entry.graph;
}

std::size_t Graphs::calls() {
    const std::lock_guard lock(mutex_);
    return entries_.size();
}

std::size_t Graphs::graphs() {
    const std::lock_guard lock(mutex_);
    return static_cast<std::size_t>(std::count_if(entries_.begin(), entries_.end(),
                                                  [](const Entry& entry) { return entry.graph != nullptr; }));
}

}  // namespace fusedrnn::cuda
