#include "bindings/buffer.h"

#include <pthread.h>

#ifdef __linux__
#include <sys/mman.h>
#endif

#include <algorithm>
#include <array>
#include <atomic>
#include <cstdlib>
#include <limits>
#include <new>
#include <tuple>
#include <type_traits>
#include <utility>

namespace fusedrnn {
namespace {

constexpr std::int64_t kCacheLine = 64, kHugePage = 2 << 20;
#ifdef __SANITIZE_ADDRESS__
constexpr std::int64_t kSpareBytes = 0;  // reuse would hide errors
#else
constexpr std::int64_t kSpareBytes = 128 << 20;
#endif

// Freed buffers, oldest first. Whoever finds it in use goes without.
class SpareBuffers {
  public:
    // A buffer of at least `bytes`, but not much larger, and its capacity; null if there is none.
    std::pair<void*, std::int64_t> take(std::int64_t bytes) {
        if (bytes < AlignedBuffer::kSmallestSpare || busy_.test_and_set(std::memory_order_acquire))
            return {nullptr, 0};
        int best = -1;
        for (int i = 0; i < count_; ++i) {
            const std::int64_t capacity = spares_[i].second;
            if (capacity < bytes || capacity - bytes > bytes / 4) continue;
            if (best < 0 || capacity < spares_[best].second) best = i;
        }
        std::pair<void*, std::int64_t> found{nullptr, 0};
        if (best >= 0) found = remove(best);
        busy_.clear(std::memory_order_release);
        return found;
    }

    void give(void* data, std::int64_t capacity) {
        if (capacity < AlignedBuffer::kSmallestSpare || capacity > kSpareBytes ||
            busy_.test_and_set(std::memory_order_acquire)) {
            std::free(data);
            return;
        }
        while (count_ == static_cast<int>(spares_.size()) || held_ + capacity > kSpareBytes) {
            std::free(remove(0).first);
        }
        spares_[count_++] = {data, capacity};
        held_ += capacity;
        busy_.clear(std::memory_order_release);
    }

    // In the child of a fork: what a thread that is not there was changing is left to itself.
    void after_fork() {
        if (busy_.test_and_set(std::memory_order_acquire)) {
            count_ = 0;
            held_ = 0;
        }
        busy_.clear(std::memory_order_release);
    }

    void clear() {
        if (busy_.test_and_set(std::memory_order_acquire)) return;
        while (count_ > 0) std::free(remove(count_ - 1).first);
        busy_.clear(std::memory_order_release);
    }

  private:
    std::pair<void*, std::int64_t> remove(int index) {
        const auto removed = spares_[index];
        std::move(spares_.begin() + index + 1, spares_.begin() + count_, spares_.begin() + index);
        --count_;
        held_ -= removed.second;
        return removed;
    }

    std::atomic_flag busy_ = ATOMIC_FLAG_INIT;
    std::array<std::pair<void*, std::int64_t>, 32> spares_{};
    int count_ = 0;
    std::int64_t held_ = 0;
};

// Made with the library and never destroyed: threads may still free buffers while the process ends.
SpareBuffers& spares() {
    static_assert(std::is_trivially_destructible_v<SpareBuffers>);
    static constinit SpareBuffers buffers;
    return buffers;
}
[[maybe_unused]] const int registered = pthread_atfork(nullptr, nullptr, [] { spares().after_fork(); });

}  // namespace

AlignedBuffer::AlignedBuffer(std::int64_t bytes) : bytes_(bytes) {
    if (bytes < 0 || bytes > std::numeric_limits<std::int64_t>::max() - kHugePage) throw std::bad_alloc();
    std::tie(data_, capacity_) = spares().take(bytes);
    if (data_ != nullptr) return;
    capacity_ = std::max<std::int64_t>((bytes + kCacheLine - 1) / kCacheLine, 1) * kCacheLine;
    const bool large = bytes >= kHugePage;
    const auto alignment = static_cast<std::size_t>(large ? kHugePage : kCacheLine);
    const auto size = static_cast<std::size_t>(capacity_);
    if (posix_memalign(&data_, alignment, size) != 0) {
        spares().clear();
        if (posix_memalign(&data_, alignment, size) != 0) throw std::bad_alloc();
    }
#ifdef MADV_HUGEPAGE
    // Advice: without huge pages all works as well.
    if (large) madvise(data_, size, MADV_HUGEPAGE);
#endif
}

AlignedBuffer::~AlignedBuffer() {
    if (capacity_ > 0) spares().give(data_, capacity_);
}

AlignedBuffer::AlignedBuffer(AlignedBuffer&& other) noexcept
    : data_(std::exchange(other.data_, nullptr)),
      bytes_(std::exchange(other.bytes_, 0)),
      capacity_(std::exchange(other.capacity_, 0)) {}

AlignedBuffer& AlignedBuffer::operator=(AlignedBuffer&& other) noexcept {
    std::swap(data_, other.data_);
    std::swap(bytes_, other.bytes_);
    std::swap(capacity_, other.capacity_);
    return *this;
}

void require_memory(std::int64_t bytes) { const AlignedBuffer probe(bytes); }

}  // namespace fusedrnn
