// Threads as the kernels see them: a team runs one function on every member, and members may meet at a barrier.
#pragma once

#include <atomic>
#include <chrono>

namespace fusedrnn {

class ThreadPool;

// Holds the pool's workers for one call. Construction asks for `wanted` members including the caller; `size` says how
// many there are (1 where the pool is busy with another call). The caller is member 0.
class Team {
  public:
    explicit Team(int wanted);
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
        if (member == 0 && --countdown_ == 0) poll();
        return stop_.load(std::memory_order_relaxed);
    }
    bool was_cancelled() const { return stop_.load(); }

  private:
    void poll();

    int size_;
    ThreadPool* pool_ = nullptr;
    std::atomic<bool> stop_{false};
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
