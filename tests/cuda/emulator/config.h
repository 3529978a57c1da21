// What the emulator may be asked: its random choices, its size, and what to leave out of a kernel to see a
// test fail.
#pragma once

#include <cstdint>
#include <set>
#include <string>
#include <vector>

namespace fusedrnn::cuda::emulator {

// The operations that order threads or memory. One that is left out does everything but order.
enum class Operation : int {
    block_barrier,
    warp_barrier,
    load_acquire,
    store_release,
    add_release,
    fence,
    cp_async_wait,
    cluster_barrier,
    mbarrier_try_wait,
    count
};
const char* name(Operation operation);

// Where a kernel calls the device layer; a default argument makes it the caller's own file and line.
struct Site {
    const char* file;
    int line;
    static constexpr Site here(const char* file = __builtin_FILE(), int line = __builtin_LINE()) {
        return {file, line};
    }
};

struct CallSite {
    Operation operation;
    std::string file;
    int line;
    bool operator==(const CallSite&) const = default;
};

// Leaves out the operation wherever all of the following fit.
struct Omission {
    Operation operation;
    std::string file;  // the end of its name; empty for any
    int line = 0;      // 0 for any
    int nth = -1;      // the n-th of these operations of each thread, from 0; -1 for all
};

struct Config {
    std::uint64_t seed = 1;
    int resident_blocks = 16;  // of a kernel, at the same time
    int architecture = 80;     // what current_device() says
    bool poison = true;        // memory nobody has written reads as NaN (bytes 0xFF), otherwise as 0
    int preempt = 16;          // one access of global memory in so many lets another thread run
    int stale_percent = 50;    // of the loads that may see an old value, those that do
    int early_percent = 25;    // of the plain stores, those that everyone may see at once
    bool check_bounds = true;  // global accesses must lie in allocate()d or register_memory()d memory
    std::uint64_t max_turns = 400000000;  // changes of threads in one launch before it is given up
    std::vector<Omission> omit;
};

// Takes effect with the next launch. Launches that follow each other differ, in the same way after each call.
void set_config(const Config& config);
const Config& config();

// Where kernels have called these operations since set_config(): each of them is one to leave out.
const std::vector<CallSite>& call_sites();

// The streams that launches, copies and fills were given since the last question. Nothing waits for them here,
// but a GPU would.
std::set<const void*> take_streams();
void note_stream(const void* stream);

// Memory that kernels may use though allocate() did not make it.
void register_memory(const void* p, std::size_t bytes);
void unregister_memory(const void* p);

}  // namespace fusedrnn::cuda::emulator
