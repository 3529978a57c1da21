// The threads of a launch and the order they run in.
#pragma once

#include <cstdint>
#include <memory>
#include <span>
#include <string>
#include <vector>

#include "cluster.h"
#include "config.h"
#include "device/types.h"
#include "fiber.h"
#include "include/platform/device.h"
#include "launch.h"
#include "memory.h"

namespace fusedrnn::cuda::emulator {

struct Block;

// What the running thread sees of where it is.
struct Place : Where {
    unsigned char* shared = nullptr;
    int shared_bytes = 0;
};

// A cp_async16 on its way.
struct PendingCopy {
    unsigned char* to;
    Address from;
    int bytes, group;
    bool read, written;
    unsigned char data[16];
};

enum class Wait { nothing, block_barrier, cluster_barrier, warp, spin, end };

struct Thread {
    Place place;
    Fiber fiber;
    Block* block = nullptr;
    std::uint64_t fresh = 0;  // loads see memory as it was at this time or later
    StoreBuffer stores;
    std::vector<PendingCopy> copies;
    int group = 0;  // of the copies not yet committed
    std::vector<RemoteStore> remote_stores;
    PhaseCounts waited, seen;  // of the block's mbarriers; seen: also by what this thread has met in barriers
    std::uint64_t polled = 0;  // the time of memory when this thread began to look for a change
    void* operands = nullptr;  // of the operation of the warp that it waits in
    Wait wait = Wait::nothing;
    const char* waits_in = "";
    Site site{"", 0};
    int calls[static_cast<int>(Operation::count)] = {};
};

using WarpFunction = void (*)(void* const (&operands)[32]);

struct Warp {
    StoreBuffer stores;
    int arrived = 0, ended = 0;
    WarpFunction function = nullptr;
    const char* operation = "";
    Site site{"", 0};
    bool late = false;  // goes on only where nothing else can
};

struct Block {
    int id = -1;  // linear index in the grid
    std::vector<std::unique_ptr<Thread>> threads;
    std::vector<Warp> warps;
    std::vector<Thread*> runnable;
    StoreBuffer stores;
    std::unique_ptr<unsigned char[]> memory;  // shared memory between two red zones
    unsigned char* shared = nullptr;
    int shared_bytes = -1;
    Cluster* cluster = nullptr;
    int rank = 0;      // in the cluster
    int barriers = 0;  // that all threads have come past
    std::map<Address, Phases> mbarriers;
    std::vector<Received> received;  // by four bytes of shared memory; empty where there has been no st_async
    int arrived = 0, ended = 0;
    Site site{"", 0};  // of the barrier that threads wait in
};

// One launch. There is one at a time.
class Grid {
  public:
    Grid(const Body& body, const Shape& shape, const Config& config, std::uint64_t seed,
         std::vector<std::unique_ptr<Block>>& blocks);
    void run();

    // ---- called by the running thread ----
    void block_barrier(Site site);
    void cluster_barrier(Site site);
    // Waits for the 32 lanes; the last one calls function on the operands of all of them.
    void warp_operation(const char* name, WarpFunction function, void* operands, Site site);
    void spin(Site site);
    void may_switch() {
        if (random() % static_cast<std::uint64_t>(config_.preempt) == 0) let_others_run();
    }
    // Memory changed: threads that spin look again.
    void wake_spinners();
    [[noreturn]] void fail(const std::string& what, Site site);
    // A st_async, which lands some time, and an arrival at an mbarrier.
    void send(const Flight& flight) { flights_.push_back(flight); }
    void arrive(Phases& mbarrier, int bytes, Site site);
    std::uint64_t random();

    const Config& config() const { return config_; }
    Memory memory;

  private:
    static void thread_main();
    std::span<const std::unique_ptr<Thread>> threads_of(const Block& block) const;
    void make_shared_memory(Block& block) const;
    void start(std::size_t first_slot);
    void start(Block& block, int id);
    // A random one of the flights lands; false, and the launch has failed, where it must not.
    bool land_any();
    void end_phase(Phases& mbarrier);
    void check_end_of(const Block& block) const;
    void finish(Block& block);
    void end_thread();
    void let_others_run();
    void make_runnable(Thread& thread);
    Thread* pick();
    static Thread* take_any(std::vector<Thread*>& from, std::uint64_t random);
    void change_to(Thread* next, bool ends = false);
    void wait(Wait what, const char* name, Site site);
    void release_barrier(Block& block);
    void release_barrier(Cluster& cluster);
    std::string describe_mbarriers() const;
    std::string describe_deadlock() const;

    Body body_;
    const Shape& shape_;
    const Config& config_;
    std::vector<std::unique_ptr<Block>>& blocks_;
    std::uint64_t random_state_;
    std::uint64_t burst_;  // a block keeps running for so many changes of threads, on average
    std::uint64_t turns_ = 0;
    Fiber main_;
    std::vector<int> pending_;       // clusters that have not started, the next one last
    std::vector<Cluster> clusters_;  // that run, by slot
    std::vector<Flight> flights_;
    std::uint64_t haste_;  // at one change of threads in so many a flight lands; 0: only when it must
    std::vector<std::pair<int, StoreBuffer>> left_;  // what blocks that have ended wrote
    std::vector<Thread*> spinning_;
    bool some_late_ = false;       // whether a warp in four is late
    std::vector<Thread*> late_;    // runnable threads of late warps
    std::size_t resident_ = 0;     // of blocks_, how many this launch uses
    std::size_t current_ = 0;      // the block that runs
    int runnable_ = 0, live_ = 0;  // runnable_: in blocks_
    Block* finished_ = nullptr;
    bool failed_ = false;
    std::string error_;
};

extern Grid* grid;    // the launch
extern Thread* self;  // the thread that runs
extern Place* place;  // its place

// Threads are fibers of one thread of the system: between two of these calls nothing else runs.
void order_warp();  // what warp_barrier does to memory
void merge_seen(std::span<const std::unique_ptr<Thread>> threads);
void check_received(const void* p, int size, Site site);
bool is_left_out(Operation operation, Site site);

std::string text(Int3 v);
[[noreturn]] void refuse(const std::string& what);  // throws an Error of the launch

}  // namespace fusedrnn::cuda::emulator
