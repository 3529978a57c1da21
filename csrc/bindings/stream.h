// What the streams of full and of quantized weights share: who may use them, the input and the output of a step.
#pragma once

#include <pthread.h>

#include <atomic>
#include <cstring>
#include <memory>
#include <stdexcept>
#include <vector>

#include "bindings/arrays.h"
#include "bindings/buffer.h"

namespace fusedrnn {

// Refuses a use that comes during another: of a second thread, or of a signal handler in the middle of a step.
class SingleUser {
  public:
    class Use {
      public:
        explicit Use(SingleUser& user) : token_(user.token_) {
            const std::uint64_t mine = forks_.load(std::memory_order_relaxed) << 32 | thread();
            std::uint64_t held = 0;
            if (token_.compare_exchange_strong(held, mine, std::memory_order_acquire)) return;
            if (is_lost(held) && token_.compare_exchange_strong(held, mine, std::memory_order_acquire))
                return;
            throw std::runtime_error(
                "stream: expected one use at a time, got one during another; make a stream for each thread");
        }
        ~Use() { token_.store(0, std::memory_order_release); }
        Use(const Use&) = delete;
        Use& operator=(const Use&) = delete;

      private:
        std::atomic<std::uint64_t>& token_;
    };

  private:
    // In the child of a fork only the thread that forked goes on: what another one held there is free.
    static bool is_lost(std::uint64_t token) {
        return token >> 32 != forks_.load(std::memory_order_relaxed) &&
               static_cast<std::uint32_t>(token) != survivor_.load(std::memory_order_relaxed);
    }
    static std::uint32_t thread() {
        static const int registered = pthread_atfork(nullptr, nullptr, [] {
            survivor_.store(thread(), std::memory_order_relaxed);
            forks_.fetch_add(1, std::memory_order_relaxed);
        });
        static_cast<void>(registered);
        static std::atomic<std::uint32_t> threads{0};
        thread_local const std::uint32_t number = ++threads;
        return number;
    }

    inline static std::atomic<std::uint64_t> forks_{0};
    inline static std::atomic<std::uint32_t> survivor_{0};
    std::atomic<std::uint64_t> token_{
        0};  // how many forks were before, and the number of the thread; 0: free
};

// (B, I), or (I,) where B is 1, of one step.
template <class T>
class StepInput {
  public:
    StepInput(py::handle x, const Array& like, const py::dtype& dtype, std::int64_t batch,
              std::int64_t inputs) {
        if (direct(x, dtype, batch, inputs)) return;
        checked_ = Array::like(x, "x", like);
        single_ = batch == 1 && checked_.ndim() == 1;
        if (single_) {
            checked_.shape({{"I", inputs}});
        } else {
            checked_.shape({{"B", batch}, {"I", inputs}});
        }
        checked_.made_contiguous();
        data_ = checked_.data<T>();
    }
    const T* data() const { return data_; }
    bool single() const { return single_; }

  private:
    // The usual input, without the general checks; false for anything that needs them.
    bool direct(py::handle x, const py::dtype& wanted, std::int64_t batch, std::int64_t inputs) {
        if (!is_plain_array(x)) return false;
        const auto& a = reinterpret_cast<const py::array&>(x);
        const py::dtype dtype = a.dtype();
        constexpr int kPlain = py::array::c_style | 0x0100;  // contiguous, aligned
        if ((!dtype.is(wanted) && !dtype.equal(wanted)) || (a.flags() & kPlain) != kPlain) return false;
        single_ = a.ndim() == 1 && batch == 1 && a.shape(0) == inputs;
        data_ = static_cast<const T*>(a.data());
        return single_ || (a.ndim() == 2 && a.shape(0) == batch && a.shape(1) == inputs);
    }

    Array checked_;
    const T* data_ = nullptr;
    bool single_ = false;
};

// The array that every step returns. Its memory is not NumPy's, which would let the caller resize it.
class StepOutput {
  public:
    StepOutput() = default;
    StepOutput(DType dtype, std::int64_t batch, std::int64_t width) : dtype_(dtype_object(dtype)) {
        bytes_ = checked_product({batch, width, dtype_.itemsize()});
        auto memory = std::make_unique<AlignedBuffer>(bytes_);
        data_ = memory->data();
        std::memset(data_, 0, static_cast<std::size_t>(bytes_));
        const py::capsule owner(memory.get(), [](void* p) { delete static_cast<AlignedBuffer*>(p); });
        memory.release();
        all_ = py::array(dtype_, std::vector<py::ssize_t>{batch, width}, {}, data_, owner);
        if (batch == 1) row_ = all_[py::int_(0)];
    }
    const py::dtype& dtype() const { return dtype_; }
    py::object set(const void* values, bool single) {
        std::memcpy(data_, values, static_cast<std::size_t>(bytes_));
        return single ? row_ : all_;
    }

  private:
    py::dtype dtype_ = py::dtype::of<float>();
    py::object all_, row_;
    void* data_ = nullptr;
    std::int64_t bytes_ = 0;
};

}  // namespace fusedrnn
