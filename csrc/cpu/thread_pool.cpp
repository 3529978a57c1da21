// The pool behind Team: std::thread workers that spin briefly and then sleep. One call owns the pool at a time; a second
// concurrent call runs on its own thread alone, with the same results.
#if !defined(_WIN32)
#include <pthread.h>
#include <sched.h>
#endif

#include <algorithm>
#include <atomic>
#include <chrono>
#include <condition_variable>
#include <cstdint>
#include <cstdio>
#include <mutex>
#include <thread>

#include "cpu/team.h"

#if defined(__SSE2__)
#include <xmmintrin.h>
#endif

namespace fusedrnn {
namespace {

void pause() {
#if defined(__SSE2__)
    _mm_pause();
#elif defined(__aarch64__)
    asm volatile("yield");
#endif
}

#if defined(__SSE2__)
// Traps masked, rounding to nearest; FTZ and DAZ: a denormal operand costs a hundred cycles and more.
constexpr FloatingPoint kKernelFloats{0x1f80 | 0x8040, 0};

FloatingPoint floats_of_this_thread() { return {_mm_getcsr(), 0}; }
void set_floats(const FloatingPoint& floats) { _mm_setcsr(static_cast<unsigned>(floats.control)); }
#elif defined(__aarch64__)
constexpr FloatingPoint kKernelFloats{std::uint64_t{1} << 24, 0};  // FZ, the rest as above

FloatingPoint floats_of_this_thread() {
    FloatingPoint floats;
    asm volatile("mrs %0, fpcr" : "=r"(floats.control));
    asm volatile("mrs %0, fpsr" : "=r"(floats.status));
    return floats;
}
void set_floats(const FloatingPoint& floats) {
    asm volatile("msr fpcr, %0" ::"r"(floats.control));
    asm volatile("msr fpsr, %0" ::"r"(floats.status));
}
#else
constexpr FloatingPoint kKernelFloats{};

FloatingPoint floats_of_this_thread() { return {}; }
void set_floats(const FloatingPoint&) {}
#endif

// The least time between two moves of a worker: where others have the processors, moves do not help.
constexpr std::chrono::milliseconds kBetweenMoves{1};
constexpr int kSpins = 2000;             // about 20 us of pauses before a worker sleeps
constexpr int kSpinsBeforeYield = 4000;  // in a barrier; then the processor is offered to others

struct alignas(128) Flag {
    std::atomic<std::uint64_t> value{0};
};

// One turn of a bounded spin: first a pause, later the processor is offered to others.
void spin(int& turns) {
    if (++turns < kSpinsBeforeYield) {
        pause();
    } else {
        std::this_thread::yield();
    }
}

// A turn of a spin as work, and the least time between two questions: for the answer a thread may wait for others.
constexpr std::int64_t kSpinWork = 256;
constexpr std::chrono::milliseconds kBetweenQuestions{20};

std::atomic<InterruptCheck> interrupt_check{nullptr};

// Forks between the process that loaded the library and this one.
std::atomic<std::uint64_t> forks{0};

// The processor that this thread is on; -1 where that is not told.
int this_processor() {
#if defined(__linux__)
    return sched_getcpu();
#else
    return -1;
#endif
}

// Leaves a processor for another one that this thread may use, if there is one and the system allows it: the scheduler
// can take 50 ms to see that another is idle. Afterwards the thread may go where it could go before.
void leave_processor([[maybe_unused]] int processor) {
#if defined(__linux__)
    cpu_set_t allowed;
    if (sched_getaffinity(0, sizeof allowed, &allowed) != 0) return;
    cpu_set_t others = allowed;
    CPU_CLR(static_cast<unsigned>(processor), &others);
    if (CPU_COUNT(&others) == 0 || sched_setaffinity(0, sizeof others, &others) != 0) return;
    sched_setaffinity(0, sizeof allowed, &allowed);
#endif
}

}  // namespace

void set_interrupt_check(InterruptCheck check) { interrupt_check.store(check); }

class ThreadPool {
  public:
    void grow(int workers);
    void start(int size, void (*fn)(void*, int), void* context);
    bool finished() const { return running_.load(std::memory_order_acquire) == 0; }

    std::atomic<bool> in_use{false};
    Flag arrived[kMaxThreads];  // the barrier: the round that each member has reached

  private:
    void work(int member, std::uint64_t seen);
    void leave_the_caller(std::chrono::steady_clock::time_point& moved);

    std::mutex mutex_;
    std::condition_variable wake_;
    std::atomic<std::uint64_t> epoch_{0};
    std::atomic<int> running_{0};
    int workers_ = 0;
    int size_ = 0;
    int processor_ = -1;  // the caller's when the call began
    void (*fn_)(void*, int) = nullptr;
    void* context_ = nullptr;
};

void ThreadPool::leave_the_caller(std::chrono::steady_clock::time_point& moved) {
    const auto now = std::chrono::steady_clock::now();
    if (now - moved < kBetweenMoves) return;
    moved = now;
    leave_processor(processor_);
}

void ThreadPool::work(int member, std::uint64_t seen) {
    set_floats(kKernelFloats);
    std::chrono::steady_clock::time_point moved{};
    for (;;) {
        int spins = 0;
        while (epoch_.load(std::memory_order_acquire) == seen && ++spins < kSpins) pause();
        if (epoch_.load(std::memory_order_acquire) == seen) {
            std::unique_lock<std::mutex> lock(mutex_);
            wake_.wait(lock, [&] { return epoch_.load(std::memory_order_acquire) != seen; });
        }
        seen = epoch_.load(std::memory_order_acquire);
        if (member < size_) {
            if (processor_ >= 0 && this_processor() == processor_) leave_the_caller(moved);
            fn_(context_, member);
        }
        running_.fetch_sub(1, std::memory_order_release);
    }
}

void ThreadPool::start(int size, void (*fn)(void*, int), void* context) {
    size_ = size;
    processor_ = this_processor();
    fn_ = fn;
    context_ = context;
    for (int i = 0; i < size; ++i) arrived[i].value.store(0, std::memory_order_relaxed);
    running_.store(workers_, std::memory_order_relaxed);
    {
        const std::lock_guard<std::mutex> lock(mutex_);
        epoch_.fetch_add(1, std::memory_order_release);
    }
    wake_.notify_all();
}

void ThreadPool::grow(int workers) {
    while (workers_ < workers) {
        // A detached worker lives as long as the process: there is nothing to join at exit, where joining can hang.
        const int member = workers_ + 1;
        const std::uint64_t seen = epoch_.load();
        std::thread([this, member, seen] { work(member, seen); }).detach();
        ++workers_;
    }
}

namespace {

std::atomic<ThreadPool*> pool{nullptr};

#if !defined(_WIN32)
// The child of a fork has none of the workers: it starts afresh.
void forget_pool() {
    forks.fetch_add(1);
    pool.store(nullptr);
}
[[maybe_unused]] const int registered = pthread_atfork(nullptr, nullptr, forget_pool);
#endif

ThreadPool* the_pool() {
    ThreadPool* found = pool.load();
    if (found != nullptr) return found;
    auto* made = new ThreadPool;
    if (pool.compare_exchange_strong(found, made)) return made;
    delete made;  // another thread was first
    return found;
}

int cgroup_limit() {
    long quota = -1, period = 0;
    if (std::FILE* f = std::fopen("/sys/fs/cgroup/cpu.max", "r")) {
        if (std::fscanf(f, "%ld %ld", &quota, &period) != 2) quota = -1;
        std::fclose(f);
    }
    return quota > 0 && period > 0 ? static_cast<int>(std::max(1L, (quota + period - 1) / period))
                                   : kMaxThreads;
}

std::atomic<int> num_threads{0};

}  // namespace

int available_threads() {
    int n = 1;
#if defined(__linux__)
    cpu_set_t set;
    if (sched_getaffinity(0, sizeof set, &set) == 0) n = CPU_COUNT(&set);
#else
    n = static_cast<int>(std::thread::hardware_concurrency());
#endif
    return std::max(1, std::min({n, cgroup_limit(), kMaxThreads}));
}

int get_num_threads() {
    int n = num_threads.load();
    if (n == 0) {
        n = available_threads();
        num_threads.store(n);
    }
    return n;
}

void set_num_threads(int n) { num_threads.store(n); }

Team::Team(int wanted) : size_(1) {
    if (wanted <= 1) return;
    ThreadPool* shared = the_pool();
    if (shared->in_use.exchange(true, std::memory_order_acquire)) return;
    try {
        shared->grow(std::min(wanted, kMaxThreads) - 1);
    } catch (...) {  // no more threads to be had: go on alone
        shared->in_use.store(false, std::memory_order_release);
        return;
    }
    pool_ = shared;
    forks_ = forks.load();
    size_ = std::min(wanted, kMaxThreads);
}

Team::Team(Team& whole, int member)
    : size_(1), whole_(&whole), stop_(whole.stop_), asking_(member == 0 ? 0 : -1), floats_(1) {}

Team::~Team() {
    if (pool_ != nullptr) pool_->in_use.store(false, std::memory_order_release);
}

bool Team::is_orphaned() const { return pool_ != nullptr && forks_ != forks.load(); }

void Team::run(void (*fn)(void*, int), void* context) {
    const KernelFloats floats(*this);
    if (is_orphaned()) return stop_->store(true);
    if (pool_ != nullptr) pool_->start(size_, fn, context);
    fn(context, 0);
    int spins = 0;
    while (pool_ != nullptr && !pool_->finished() && !is_orphaned()) {
        spin(spins);
        cancelled(0, kSpinWork);  // the others may have longer calls to finish
    }
    if (is_orphaned()) stop_->store(true);
}

bool Team::barrier(int member) {
    if (stop_->load(std::memory_order_relaxed)) return false;
    if (pool_ == nullptr) return true;
    Flag* arrived = pool_->arrived;
    const std::uint64_t round = arrived[member].value.load(std::memory_order_relaxed) + 1;
    arrived[member].value.store(round, std::memory_order_release);
    for (int other = 0; other < size_; ++other) {
        int spins = 0;
        while (arrived[other].value.load(std::memory_order_acquire) < round) {
            if (cancelled(member, kSpinWork)) return false;
            spin(spins);
        }
    }
    return true;
}

bool Team::wait(const Progress& progress, std::int64_t steps, int member) {
    int spins = 0;
    while (progress.steps.load(std::memory_order_acquire) < steps) {
        if (cancelled(member, kSpinWork)) return false;
        spin(spins);
    }
    return true;
}

void Team::poll() {
    work_left_ = kWorkBetweenPolls;
    const auto now = std::chrono::steady_clock::now();
    if (asked_ == std::chrono::steady_clock::time_point{}) asked_ = now;
    if (now - asked_ < kBetweenQuestions) return;
    const InterruptCheck check = interrupt_check.load();
    if (check != nullptr) {
        FloatingPoint& callers = whole_->callers_floats_;
        set_floats(callers);
        if (check()) stop_->store(true);
        callers = floats_of_this_thread();
        set_floats(kKernelFloats);
    }
    if (whole_->is_orphaned()) stop_->store(true);
    asked_ = std::chrono::steady_clock::now();
}

Team::KernelFloats::KernelFloats(Team& team) : team_(team) {
    if (team.floats_++ > 0) return;
    team.callers_floats_ = floats_of_this_thread();
    set_floats(kKernelFloats);
}

Team::KernelFloats::~KernelFloats() {
    if (--team_.floats_ == 0) set_floats(team_.callers_floats_);
}

}  // namespace fusedrnn
