// Types that kernels and drivers share; plain data, for any compiler.
#pragma once

#include <cstdint>

#ifdef __CUDACC__
#define FUSEDRNN_HOST_DEVICE __host__ __device__ __forceinline__
#else
#define FUSEDRNN_HOST_DEVICE inline
#endif

namespace fusedrnn::cuda {

struct Int3 {
    int x, y, z;
};

// 16 bytes that are loaded and stored together.
struct alignas(16) Vector16 {
    std::uint32_t word[4];
};

// Elements of two bytes as they lie in memory. Arithmetic is done in float: see to_float and from_float in
// device.h.
struct bf16 {
    std::uint16_t bits;
};
struct fp16 {
    std::uint16_t bits;
};

}  // namespace fusedrnn::cuda
