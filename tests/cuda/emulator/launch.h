// Launching a kernel on the emulator; runtime.h is the way to it.
#pragma once

#include <cstddef>
#include <functional>

namespace fusedrnn::cuda {
struct Shape;
}

namespace fusedrnn::cuda::emulator {

// A kernel with its arguments.
struct Body {
    void (*call)(void*);
    void* context;
};

// Runs the whole grid before it returns. Throws Error for what the kernel does wrong, with the block, the
// thread and the place.
void launch(const Body& body, const Shape& shape, std::size_t argument_bytes);
int resident_blocks(const Shape& shape);

// Runs work of a stream, or keeps it where the stream is captured.
void submit(void* stream, std::function<void()> work);

}  // namespace fusedrnn::cuda::emulator
