// Threads as the kernels see them: a team runs one function on every member, and members may meet at a barrier.
#pragma once

#include <atomic>
#include <chrono>
#include <cstdint>

namespace fusedrnn {

class ThreadPool;

// The floating-point state of a thread: rounding, what becomes of denormals, traps, and the flags of past exceptions.
struct FloatingPoint {
    std::uint64_t control, status;
};

// How far a call has come, for another that reads its output meanwhile: so many steps of it are written.
struct alignas(128) Progress {
    std::atomic<std::int64_t> steps{0};
};

// Holds the pool's workers for one call. Construction asks for `wanted` members including the caller; `size` says how
// many there are (1 where the pool is busy with another call). The caller is member 0.
class Team {
  public:
    explicit Team(int wanted);
    // Member `member` of a running team on its own, for a call of its own; it stops when the team is to stop.
    Team(Team& whole, int member);
    ~Team();
    Team(const Team&) = delete;
    Team& operator=(const Team&) = delete;

    // Inlined without fail: the kernels' objects must not export a copy made of their own instructions.
    [[gnu::always_inline]] int size() const { return size_; }
    // Runs fn(context, member) on every member and returns when all are done. Each member has the kernels' floating-point
    // state meanwhile: rounding to nearest, denormals flushed to zero, no traps.
    void run(void (*fn)(void* context, int member), void* context);
    // Waits for all members; false once the call was cancelled.
    bool barrier(int member);
    // Says whether to stop, after so much work since the last time: multiply-adds, or what takes as long. Member 0 asks
    // the interrupt check now and then, by the work done, so that parts of any length may follow one another.
    [[gnu::always_inline]] bool cancelled(int member, std::int64_t work) {
        if (member == asking_ && (work_left_ -= work) <= 0) poll();
        return stop_->load(std::memory_order_relaxed);
    }
    // Waits until so many steps are there; false once the call was cancelled.
    bool wait(const Progress& progress, std::int64_t steps, int member);
    bool was_cancelled() const { return stop_->load(); }

    // The kernels' floating-point state on the caller's thread while it lives. The interrupt check, and what runs in it,
    // has the caller's own.
    class KernelFloats {
      public:
        explicit KernelFloats(Team& team);
        ~KernelFloats();
        KernelFloats(const KernelFloats&) = delete;
        KernelFloats& operator=(const KernelFloats&) = delete;

      private:
        Team& team_;
    };

  private:
    static constexpr std::int64_t kWorkBetweenPolls = std::int64_t{1} << 22;  // below a millisecond, mostly

    void poll();
    // Whether this is the child of a fork that happened during the call: it has none of the other members' threads.
    bool is_orphaned() const;

    int size_;
    ThreadPool* pool_ = nullptr;
    Team* whole_ = this;  // the team that this is a member of
    std::atomic<bool> stopped_{false};
    std::atomic<bool>* stop_ = &stopped_;  // of the whole team
    int asking_ = 0;                       // the member that asks the interrupt check; -1: another team's
    std::uint64_t forks_ = 0;              // before this process, when the call began
    // What that member writes, off the cache line that all read.
    alignas(64) std::int64_t work_left_ = kWorkBetweenPolls;
    int floats_ = 0;  // KernelFloats that live
    FloatingPoint callers_floats_{};
    std::chrono::steady_clock::time_point asked_;
};

// The question "was the call interrupted", asked now and then by member 0 of every team this thread starts.
using InterruptCheck = bool (*)();
void set_interrupt_check(InterruptCheck check);

int get_num_threads();
void set_num_threads(int n);
// The smaller of the affinity mask and the cgroup's processor quota.
int available_threads();

inline constexpr int kMaxThreads = 256;

}  // namespace fusedrnn
