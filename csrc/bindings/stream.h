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
    SingleUser() {
        static const int registered = pthread_atfork(nullptr, nullptr, [] {
            survivor_ = thread();
            forks_.fetch_add(1, std::memory_order_relaxed);
        });
        static_cast<void>(registered);
    }

    class Use {
      public:
        explicit Use(SingleUser& user) : holder_(user.holder_) {
            std::uint64_t held = holder_.load(std::memory_order_relaxed);
            if ((held == 0 || is_lost(held)) && take(held)) return;
            throw std::runtime_error(
                "stream: expected one use at a time, got one during another; make a stream for each thread");
        }
        ~Use() { holder_.store(0, std::memory_order_release); }
        Use(const Use&) = delete;
        Use& operator=(const Use&) = delete;

      private:
        bool take(std::uint64_t held) {
            const std::uint64_t mine = forks_.load(std::memory_order_relaxed) << kThreadBits | thread();
#ifdef Py_GIL_DISABLED
            return holder_.compare_exchange_strong(held, mine, std::memory_order_acquire);
#else
            static_cast<void>(held);  // the GIL is held
            holder_.store(mine, std::memory_order_relaxed);
            return true;
#endif
        }

        std::atomic<std::uint64_t>& holder_;
    };

  private:
    static constexpr int kThreadBits =
        48;  // of the address that tells threads apart; above it the count of forks

    // pthread_t is an integer or a pointer.
    static std::uint64_t thread() { return (std::uint64_t)pthread_self() & ((1ull << kThreadBits) - 1); }
    // In the child of a fork only the thread that forked goes on: what another one held there is free.
    static bool is_lost(std::uint64_t holder) {
        const std::uint64_t forks = forks_.load(std::memory_order_relaxed);
        return holder >> kThreadBits != (forks << kThreadBits) >> kThreadBits &&
               (holder & ((1ull << kThreadBits) - 1)) != survivor_;
    }

    inline static std::atomic<std::uint64_t> forks_{0};
    inline static std::uint64_t survivor_ = 0;  // written where there is one thread
    std::atomic<std::uint64_t> holder_{0};      // 0: nobody
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

// The array that every step returns. Its memory is not NumPy's, which would let the caller resize it. One whose
// shape, strides or dtype the caller has set is the caller's from then on: the next step returns another.
class StepOutput {
  public:
    StepOutput() = default;
    StepOutput(DType dtype, std::int64_t batch, std::int64_t width)
        : dtype_(dtype_object(dtype)), batch_(batch), width_(width), itemsize_(dtype_.itemsize()) {
        bytes_ = checked_product({batch, width, itemsize_});
        auto memory = std::make_unique<AlignedBuffer>(bytes_);
        data_ = memory->data();
        std::memset(data_, 0, static_cast<std::size_t>(bytes_));
        owner_ = py::capsule(memory.get(), [](void* p) { delete static_cast<AlignedBuffer*>(p); });
        memory.release();
        all_ = made(false);
        if (batch == 1) row_ = made(true);
    }
    const py::dtype& dtype() const { return dtype_; }
    py::object set(const void* values, bool single) {
        std::memcpy(data_, values, static_cast<std::size_t>(bytes_));
        py::array& out = single ? row_ : all_;
        if (!as_made(out, single)) out = made(single);
        return out;
    }

  private:
    py::array made(bool single) const {
        const std::vector<py::ssize_t> shape{batch_, width_};
        return {dtype_, {shape.begin() + (single ? 1 : 0), shape.end()}, {}, data_, owner_};
    }
    bool as_made(const py::array& out, bool single) const {
        const auto* a = py::detail::array_proxy(out.ptr());
        const int last = single ? 0 : 1;
        return a->nd == last + 1 && a->dimensions[last] == width_ && a->strides[last] == itemsize_ &&
               (single || (a->dimensions[0] == batch_ && a->strides[0] == width_ * itemsize_)) &&
               a->descr == dtype_.ptr();
    }

    py::dtype dtype_ = py::dtype::of<float>();
    py::capsule owner_;
    py::array all_, row_;
    void* data_ = nullptr;
    std::int64_t batch_ = 0, width_ = 0, itemsize_ = 0, bytes_ = 0;
};

}  // namespace fusedrnn
