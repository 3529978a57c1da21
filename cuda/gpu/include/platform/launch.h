// Launches on a GPU, a part of runtime.h.
#pragma once

#include <type_traits>

#include "runtime.h"

namespace fusedrnn::cuda {

inline constexpr bool kFindsLibraries = true;

template <class F>
void call_library(Stream, F&& call) {
    call();
}

void launch_erased(const void* kernel, const Shape& shape, Stream stream, void** arguments);
int resident_blocks_erased(const void* kernel, const Shape& shape);

template <class... P>
void launch(void (*kernel)(P...), const Shape& shape, Stream stream,
            const std::type_identity_t<P>&... arguments) {
    void* pointers[] = {const_cast<void*>(static_cast<const void*>(&arguments))..., nullptr};
    launch_erased(reinterpret_cast<const void*>(kernel), shape, stream, pointers);
}

template <class... P>
int resident_blocks(void (*kernel)(P...), const Shape& shape) {
    return resident_blocks_erased(reinterpret_cast<const void*>(kernel), shape);
}

}  // namespace fusedrnn::cuda
