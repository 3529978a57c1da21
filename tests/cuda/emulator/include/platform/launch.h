// Launches on the emulator, a part of runtime.h.
#pragma once

#include <tuple>
#include <type_traits>
#include <utility>

#include "../../launch.h"
#include "runtime.h"

namespace fusedrnn::cuda {

inline constexpr bool kFindsLibraries = false;  // a real one cannot read this memory

template <class F>
void call_library(Stream stream, F&& call) {
    emulator::submit(stream, std::forward<F>(call));
}

template <class... P>
void launch(void (*kernel)(P...), const Shape& shape, Stream stream,
            const std::type_identity_t<P>&... arguments) {
    emulator::submit(stream, [kernel, shape, copies = std::tuple<P...>(arguments...)] {
        auto body = [&] { std::apply(kernel, copies); };
        const emulator::Body erased{[](void* p) { (*static_cast<decltype(body)*>(p))(); }, &body};
        emulator::launch(erased, shape, (sizeof(P) + ... + 0));
    });
}

template <class... P>
int resident_blocks(void (*)(P...), const Shape& shape) {
    return emulator::resident_blocks(shape);
}

}  // namespace fusedrnn::cuda
