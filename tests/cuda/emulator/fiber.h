// A thread of control with its own stack, switched to by hand; where that is not written, or
// FUSEDRNN_UCONTEXT is defined, by the C library.
#pragma once

#include <cstddef>

#if !defined(__x86_64__) || defined(FUSEDRNN_UCONTEXT)
#define FUSEDRNN_USES_UCONTEXT 1
#include <ucontext.h>
#endif

namespace fusedrnn::cuda::emulator {

class Fiber {
  public:
    Fiber() = default;  // the calling thread of control; prepare() makes it another one
    ~Fiber();
    Fiber(const Fiber&) = delete;
    Fiber& operator=(const Fiber&) = delete;

    // The next switch to this fiber calls entry(), which never returns. `colour` spreads stacks over cache
    // lines.
    void prepare(void (*entry)(), unsigned colour);
    // Leaves `from`, which must be the running fiber. `ends`: it will not be switched to again.
    static void change(Fiber& from, Fiber& to, bool ends = false);

  private:
    static void begin();
    void arrived();

    void (*entry_)() = nullptr;
    unsigned char* stack_ = nullptr;  // null for the calling thread of control
#ifdef FUSEDRNN_USES_UCONTEXT
    ucontext_t context_;
#else
    void* pointer_ = nullptr;
#endif
    void* fake_stack_ = nullptr;  // AddressSanitizer's
    const void* bottom_ = nullptr;
    std::size_t size_ = 0;
};

}  // namespace fusedrnn::cuda::emulator
