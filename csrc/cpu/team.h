// Threads as the kernels see them: a team runs one function on every member, and members may meet at a barrier.
#pragma once

#include <atomic>
#include <chrono>
#include <cstdint>

namespace fusedrnn {

class ThreadPool;

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
    // Runs fn(context, member) on every member and returns when all are done. Each member flushes denormals to zero
    // meanwhile and gets its floating-point state back afterwards.
    void run(void (*fn)(void* context, int member), void* context);
    // Waits for all members; false once the call was cancelled.
    bool barrier(int member);
    // Says whether to stop. Member 0 asks the interrupt check, at most every few milliseconds.
    [[gnu::always_inline]] bool cancelled(int member) {
        if (member == asking_ && --countdown_ == 0) poll();
        return stop_->load(std::memory_order_relaxed);
    }
    // Waits until so many steps are there; false once the call was cancelled.
    bool wait(const Progress& progress, std::int64_t steps, int member);
    bool was_cancelled() const { return stop_->load(); }

  private:
    void poll();

    int size_;
    ThreadPool* pool_ = nullptr;
    std::atomic<bool> stopped_{false};
    std::atomic<bool>* stop_ = &stopped_;  // of the whole team
    int asking_ = 0;                       // the member that asks the interrupt check; -1: another team's
    int countdown_ = 1, interval_ = 1;
    std::chrono::steady_clock::time_point last_poll_;
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
