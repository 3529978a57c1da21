// Calls that come again, each as one graph: a step's kernel takes a launch for every step, and giving a graph to
// a stream is one.
//
// The first call of its kind runs plainly, the second is captured, and from then on its graph is launched. Calls
// are of a kind if nothing differs that their launches hold: sizes, pointers, workspace, device. What the memory
// holds may have changed, and memory that was freed meanwhile is read only if a call names it again.
#pragma once

#include <cstdint>
#include <functional>
#include <list>
#include <mutex>
#include <variant>

#include "problem.h"
#include "runtime.h"

namespace fusedrnn::cuda {

class Graphs {
  public:
    // More are forgotten, those first that were not used for longest.
    static constexpr std::size_t kMostCalls = 64;
    // Of longer sequences a graph would take more memory than launches are worth.
    static constexpr std::int64_t kMostSteps = 2048;
    using Problem = std::variant<ForwardProblem, BackwardProblem>;
    using Launches = std::function<void(Stream)>;

    // Of this process.
    static Graphs& all();

    Graphs() = default;
    Graphs(const Graphs&) = delete;
    Graphs& operator=(const Graphs&) = delete;
    ~Graphs();

    // Does what `launches` gives to a stream in `stream`. Plainly where rows differ in length or inputs are
    // looked up, since the host's copies of lengths and indices are none of a graph, and where the caller
    // captures the stream itself.
    void run(const Problem& problem, void* workspace, std::int64_t workspace_bytes, Stream stream,
             const Launches& launches);
    // Calls that are remembered, and how many of them as graphs.
    std::size_t calls();
    std::size_t graphs();

  private:
    struct Call {
        Problem problem;
        const void* workspace;
        std::int64_t workspace_bytes;
        int device;
        bool operator==(const Call&) const = default;
    };
    struct Entry {
        Call call;
        Graph graph = nullptr;
        bool refused = false;  // it cannot be captured
    };
    // The graph of a call that has come before, or null.
    Graph find(const Call& call, const Launches& launches);

    std::mutex mutex_;
    std::list<Entry> entries_;  // the last used first
};

}  // namespace fusedrnn::cuda
