// Memory of tapes, workspaces and packed weights.
#pragma once

#include <cstdint>

namespace fusedrnn {

// Uninitialised memory aligned to 64 bytes; std::bad_alloc (MemoryError) where there is none.
//
// Freed buffers of kSmallestSpare and more, 128 MB of them at most, are kept for the next calls: a training loop asks for the
// same sizes at every step, and the system takes a quarter of a forward pass to map and clear a new tape.
class AlignedBuffer {
  public:
    static constexpr std::int64_t kSmallestSpare = 64 << 10;

    AlignedBuffer() = default;
    explicit AlignedBuffer(std::int64_t bytes);
    // Memory of another owner, which has to outlive the buffer, at any alignment.
    AlignedBuffer(void* data, std::int64_t bytes) : data_(data), bytes_(bytes) {}
    ~AlignedBuffer();
    AlignedBuffer(AlignedBuffer&& other) noexcept;
    AlignedBuffer& operator=(AlignedBuffer&& other) noexcept;

    void* data() const { return data_; }
    template <class T>
    T* as() const {
        return static_cast<T*>(data_);
    }
    std::int64_t bytes() const { return bytes_; }

  private:
    void* data_ = nullptr;
    std::int64_t bytes_ = 0, capacity_ = 0;  // no capacity: not ours
};

// std::bad_alloc where there is no such block. Asked before a container of the standard library is made from a size that
// came from outside: with the sanitizers its allocation ends the process instead.
void require_memory(std::int64_t bytes);

}  // namespace fusedrnn
