#include "fiber.h"

#include <sys/mman.h>

#include <cstdint>
#include <new>

#ifdef FUSEDRNN_ASAN
#include <sanitizer/asan_interface.h>
#include <sanitizer/common_interface_defs.h>
#endif

namespace fusedrnn::cuda::emulator {

namespace {

constexpr std::size_t kPage = 4096;
#ifdef FUSEDRNN_ASAN
constexpr std::size_t kStack = 256 * 1024;
#else
constexpr std::size_t kStack = 128 * 1024;
#endif

// The fiber that is being left, for the one that arrives.
Fiber* left = nullptr;
Fiber* running = nullptr;

}  // namespace

#ifndef FUSEDRNN_USES_UCONTEXT

// Saves the registers that a call keeps and the stack pointer, and takes those of another fiber.
extern "C" void fusedrnn_change_stack(void** from, void* to);
__asm__(
    ".text\n"
    ".globl fusedrnn_change_stack\n"
    ".hidden fusedrnn_change_stack\n"
    ".type fusedrnn_change_stack, @function\n"
    "fusedrnn_change_stack:\n"
    "    pushq %rbp\n"
    "    pushq %rbx\n"
    "    pushq %r12\n"
    "    pushq %r13\n"
    "    pushq %r14\n"
    "    pushq %r15\n"
    "    movq %rsp, (%rdi)\n"
    "    movq %rsi, %rsp\n"
    "    popq %r15\n"
    "    popq %r14\n"
    "    popq %r13\n"
    "    popq %r12\n"
    "    popq %rbx\n"
    "    popq %rbp\n"
    "    ret\n"
    ".size fusedrnn_change_stack, . - fusedrnn_change_stack\n");

#endif

Fiber::~Fiber() {
    if (stack_ == nullptr) return;
#ifdef FUSEDRNN_ASAN
    __asan_unpoison_memory_region(stack_, kStack);
#endif
    munmap(stack_ - kPage, kPage + kStack);
}

void Fiber::prepare(void (*entry)(), unsigned colour) {
    if (stack_ == nullptr) {
        void* p = mmap(nullptr, kPage + kStack, PROT_READ | PROT_WRITE,
                       MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
        if (p == MAP_FAILED) throw std::bad_alloc();
        mprotect(p, kPage, PROT_NONE);
        stack_ = static_cast<unsigned char*>(p) + kPage;
    }
#ifdef FUSEDRNN_ASAN
    unsigned char* used = stack_;
#ifndef FUSEDRNN_USES_UCONTEXT
    // Of an earlier run the calls are left in which it ended; what lies below them has been given back.
    used = pointer_ == nullptr ? stack_ + kStack : static_cast<unsigned char*>(pointer_) - kPage;
#endif
    __asan_unpoison_memory_region(used, static_cast<std::size_t>(stack_ + kStack - used));
#endif
    entry_ = entry;
    fake_stack_ = nullptr;
    bottom_ = stack_;
    size_ = kStack;
    unsigned char* top = stack_ + kStack - 64 * std::size_t{colour % 61};
#ifdef FUSEDRNN_USES_UCONTEXT
    getcontext(&context_);
    context_.uc_stack.ss_sp = stack_;
    context_.uc_stack.ss_size = static_cast<std::size_t>(top - stack_);
    context_.uc_link = nullptr;
    makecontext(&context_, &Fiber::begin, 0);
#else
    // As if begin() had been called from address 0 and had called fusedrnn_change_stack at once.
    auto** frame = reinterpret_cast<void**>(top);
    *--frame = nullptr;
    *--frame = reinterpret_cast<void*>(&Fiber::begin);
    for (int i = 0; i < 6; ++i) *--frame = nullptr;
    pointer_ = frame;
#endif
}

void Fiber::begin() {
    Fiber* self = running;
    self->arrived();
    self->entry_();
    __builtin_trap();
}

void Fiber::arrived() {
#ifdef FUSEDRNN_ASAN
    const void* bottom;
    std::size_t size;
    __sanitizer_finish_switch_fiber(fake_stack_, &bottom, &size);
    if (left->stack_ == nullptr) {
        left->bottom_ = bottom;
        left->size_ = size;
    }
#endif
}

void Fiber::change(Fiber& from, Fiber& to, [[maybe_unused]] bool ends) {
    left = &from;
    running = &to;
#ifdef FUSEDRNN_ASAN
    __sanitizer_start_switch_fiber(ends ? nullptr : &from.fake_stack_, to.bottom_, to.size_);
#endif
#ifdef FUSEDRNN_USES_UCONTEXT
    swapcontext(&from.context_, &to.context_);
#else
    fusedrnn_change_stack(&from.pointer_, to.pointer_);
#endif
    from.arrived();
}

}  // namespace fusedrnn::cuda::emulator
