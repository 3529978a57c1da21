#include "bindings/fork_safe_mutex.h"

#include <pthread.h>

#include <cstddef>
#include <cstdint>

namespace fusedrnn {
namespace {

// Enough that threads which use different objects seldom meet.
constexpr std::size_t kMutexes = 64;
std::mutex mutexes[kMutexes];

void take_all() {
    for (std::mutex& mutex : mutexes) mutex.lock();
}
void give_back_all() {
    for (std::mutex& mutex : mutexes) mutex.unlock();
}
[[maybe_unused]] const int at_fork = pthread_atfork(take_all, give_back_all, give_back_all);

}  // namespace

std::mutex& fork_safe_mutex(const void* object) {
    return mutexes[reinterpret_cast<std::uintptr_t>(object) / 64 % kMutexes];
}

}  // namespace fusedrnn
