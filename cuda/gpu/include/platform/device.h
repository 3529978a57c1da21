// The device layer on a GPU of compute capability 8.0 and later; its contract stands in device/device.h.
#pragma once

#include <cstring>

#include "device/types.h"

#define FUSEDRNN_KERNEL __global__
#define FUSEDRNN_LAUNCH_BOUNDS(threads, blocks) __launch_bounds__(threads, blocks)
#define FUSEDRNN_DEVICE __device__ __forceinline__
#define FUSEDRNN_UNROLL _Pragma("unroll")
#define FUSEDRNN_UNROLL_FEW _Pragma("unroll 8")
#define FUSEDRNN_KEEP_LOOP _Pragma("unroll 1")

namespace fusedrnn::cuda {

// ---- where am I ----------------------------------------------------------------------------------------

FUSEDRNN_DEVICE int thread_index() { return static_cast<int>(threadIdx.x); }
FUSEDRNN_DEVICE int block_threads() { return static_cast<int>(blockDim.x); }
FUSEDRNN_DEVICE int lane() { return thread_index() % 32; }
FUSEDRNN_DEVICE int warp() { return thread_index() / 32; }
FUSEDRNN_DEVICE Int3 block_index() {
    return {static_cast<int>(blockIdx.x), static_cast<int>(blockIdx.y), static_cast<int>(blockIdx.z)};
}
FUSEDRNN_DEVICE Int3 grid_size() {
    return {static_cast<int>(gridDim.x), static_cast<int>(gridDim.y), static_cast<int>(gridDim.z)};
}

// ---- the block and the warp ----------------------------------------------------------------------------

template <class T>
FUSEDRNN_DEVICE T* shared_memory() {
    extern __shared__ __align__(128) unsigned char fusedrnn_shared_memory[];
    return reinterpret_cast<T*>(fusedrnn_shared_memory);
}
FUSEDRNN_DEVICE void block_barrier() { __syncthreads(); }
FUSEDRNN_DEVICE void warp_barrier() { __syncwarp(); }
template <class T>
FUSEDRNN_DEVICE T shuffle(T v, int from) {
    return __shfl_sync(0xffffffffu, v, from);
}
template <class T>
FUSEDRNN_DEVICE T shuffle_xor(T v, int mask) {
    return __shfl_xor_sync(0xffffffffu, v, mask);
}

// ---- conversions ---------------------------------------------------------------------------------------

FUSEDRNN_DEVICE float as_float(unsigned bits) { return __uint_as_float(bits); }
FUSEDRNN_DEVICE unsigned as_unsigned(float x) { return __float_as_uint(x); }
FUSEDRNN_DEVICE unsigned to_bf16x2(float low, float high) {
    unsigned r;
    asm("cvt.rn.bf16x2.f32 %0, %1, %2;" : "=r"(r) : "f"(high), "f"(low));
    return r;
}
FUSEDRNN_DEVICE unsigned to_f16x2(float low, float high) {
    unsigned r;
    asm("cvt.rn.f16x2.f32 %0, %1, %2;" : "=r"(r) : "f"(high), "f"(low));
    return r;
}
FUSEDRNN_DEVICE unsigned round_tf32(float x) {
    unsigned r;
    asm("cvt.rna.tf32.f32 %0, %1;" : "=r"(r) : "f"(x));
    return r;
}
FUSEDRNN_DEVICE float to_float(float x) { return x; }
FUSEDRNN_DEVICE float to_float(bf16 x) { return __uint_as_float(static_cast<unsigned>(x.bits) << 16); }
FUSEDRNN_DEVICE float to_float(fp16 x) {
    float r;
    asm("cvt.f32.f16 %0, %1;" : "=f"(r) : "h"(x.bits));
    return r;
}
template <class T>
FUSEDRNN_DEVICE T from_float(float x);
template <>
FUSEDRNN_DEVICE float from_float<float>(float x) {
    return x;
}
template <>
FUSEDRNN_DEVICE bf16 from_float<bf16>(float x) {
    return {static_cast<std::uint16_t>(to_bf16x2(x, 0.0f))};
}
template <>
FUSEDRNN_DEVICE fp16 from_float<fp16>(float x) {
    return {static_cast<std::uint16_t>(to_f16x2(x, 0.0f))};
}

// ---- global memory -------------------------------------------------------------------------------------

// Instructions know sizes, not types: T travels as one of these. What touches memory is `asm volatile` or an
// intrinsic: a plain asm is a pure function of its operands to the compiler, which then takes a load out of
// the loop or the condition that kept it away from a null pointer.
template <int bytes>
struct Carrier;

#define FUSEDRNN_CARRIER(bytes, Type, Register, letter, ptx)                                               \
    template <>                                                                                            \
    struct Carrier<bytes> {                                                                                \
        using Bits = Type;                                                                                 \
        static FUSEDRNN_DEVICE Bits constant(const void* p) { return __ldg(static_cast<const Bits*>(p)); } \
        static FUSEDRNN_DEVICE Bits relaxed(std::size_t p) {                                               \
            Register r;                                                                                    \
            asm volatile("ld.relaxed.gpu.global." ptx " %0, [%1];" : "=" letter(r) : "l"(p) : "memory");   \
            return static_cast<Bits>(r);                                                                   \
        }                                                                                                  \
        static FUSEDRNN_DEVICE void store_relaxed(std::size_t p, Bits v) {                                 \
            asm volatile("st.relaxed.gpu.global." ptx " [%0], %1;" ::"l"(p),                               \
                         letter(static_cast<Register>(v))                                                  \
                         : "memory");                                                                      \
        }                                                                                                  \
    }
FUSEDRNN_CARRIER(1, unsigned char, std::uint16_t, "h", "u8");
FUSEDRNN_CARRIER(2, unsigned short, std::uint16_t, "h", "u16");
FUSEDRNN_CARRIER(4, unsigned int, std::uint32_t, "r", "u32");
FUSEDRNN_CARRIER(8, unsigned long long, std::uint64_t, "l", "u64");
#undef FUSEDRNN_CARRIER

template <>
struct Carrier<16> {
    using Bits = Vector16;
    static FUSEDRNN_DEVICE Bits constant(const void* p) {
        const uint4 r = __ldg(static_cast<const uint4*>(p));
        return {{r.x, r.y, r.z, r.w}};
    }
    // As one number of 128 bits: four of 32 might come one by one.
    static FUSEDRNN_DEVICE Bits relaxed(std::size_t p) {
        std::uint64_t low, high;
        asm volatile("{\n\t.reg .b128 v;\n\tld.relaxed.gpu.global.b128 v, [%2];\n\tmov.b128 {%0, %1}, v;\n\t}"
                     : "=l"(low), "=l"(high)
                     : "l"(p)
                     : "memory");
        return {{static_cast<unsigned>(low), static_cast<unsigned>(low >> 32), static_cast<unsigned>(high),
                 static_cast<unsigned>(high >> 32)}};
    }
    static FUSEDRNN_DEVICE void store_relaxed(std::size_t p, Bits v) {
        const std::uint64_t low = v.word[0] | static_cast<std::uint64_t>(v.word[1]) << 32,
                            high = v.word[2] | static_cast<std::uint64_t>(v.word[3]) << 32;
        asm volatile(
            "{\n\t.reg .b128 v;\n\tmov.b128 v, {%1, %2};\n\tst.relaxed.gpu.global.b128 [%0], v;\n\t}" ::"l"(
                p),
            "l"(low), "l"(high)
            : "memory");
    }
};

template <class To, class From>
FUSEDRNN_DEVICE To bit_copy(const From& from) {
    static_assert(sizeof(To) == sizeof(From));
    To to;
    std::memcpy(&to, &from, sizeof to);
    return to;
}

template <class T>
FUSEDRNN_DEVICE T load_constant(const T* p) {
    return bit_copy<T>(Carrier<sizeof(T)>::constant(p));
}
template <class T>
FUSEDRNN_DEVICE T load(const T* p) {
    return *p;
}
template <class T>
FUSEDRNN_DEVICE void store(T* p, T v) {
    *p = v;
}
template <class T>
FUSEDRNN_DEVICE T load_relaxed(const T* p) {
    return bit_copy<T>(Carrier<sizeof(T)>::relaxed(__cvta_generic_to_global(p)));
}
template <class T>
FUSEDRNN_DEVICE void store_relaxed(T* p, T v) {
    using C = Carrier<sizeof(T)>;
    C::store_relaxed(__cvta_generic_to_global(p), bit_copy<typename C::Bits>(v));
}
FUSEDRNN_DEVICE Vector16 load16(const void* p) { return load(static_cast<const Vector16*>(p)); }
FUSEDRNN_DEVICE Vector16 load16_constant(const void* p) {
    return load_constant(static_cast<const Vector16*>(p));
}
FUSEDRNN_DEVICE Vector16 load16_relaxed(const void* p) {
    return load_relaxed(static_cast<const Vector16*>(p));
}
FUSEDRNN_DEVICE void store16(void* p, Vector16 v) { store(static_cast<Vector16*>(p), v); }

FUSEDRNN_DEVICE unsigned load_acquire(const unsigned* p) {
    unsigned r;
    asm volatile("ld.acquire.gpu.global.u32 %0, [%1];"
                 : "=r"(r)
                 : "l"(__cvta_generic_to_global(p))
                 : "memory");
    return r;
}
FUSEDRNN_DEVICE void store_release(unsigned* p, unsigned v) {
    asm volatile("st.release.gpu.global.u32 [%0], %1;" ::"l"(__cvta_generic_to_global(p)), "r"(v) : "memory");
}
FUSEDRNN_DEVICE void add_release(unsigned* p, unsigned v) {
    asm volatile("red.release.gpu.global.add.u32 [%0], %1;" ::"l"(__cvta_generic_to_global(p)), "r"(v)
                 : "memory");
}
FUSEDRNN_DEVICE void fence() { asm volatile("fence.acq_rel.gpu;" ::: "memory"); }
// Asking again takes longer than any pause that would be worth it.
FUSEDRNN_DEVICE void spin_pause() { asm volatile("" ::: "memory"); }
[[noreturn]] FUSEDRNN_DEVICE void trap() {
    __trap();
    __builtin_unreachable();
}

FUSEDRNN_DEVICE float exp2_approximate(float x) {
    float r;
    asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(r) : "f"(x));
    return r;
}
FUSEDRNN_DEVICE float reciprocal_approximate(float x) {
    float r;
    asm("rcp.approx.ftz.f32 %0, %1;" : "=f"(r) : "f"(x));
    return r;
}

template <class T>
FUSEDRNN_DEVICE T* opaque(T* p) {
    asm volatile("" : "+l"(p));
    return p;
}

FUSEDRNN_DEVICE unsigned shared_address(const void* p) {
    return static_cast<unsigned>(__cvta_generic_to_shared(p));
}
FUSEDRNN_DEVICE void cp_async16(void* shared, const void* global, int bytes = 16) {
    asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;" ::"r"(shared_address(shared)),
                 "l"(__cvta_generic_to_global(global)), "r"(bytes)
                 : "memory");
}
FUSEDRNN_DEVICE void cp_async_commit() { asm volatile("cp.async.commit_group;" ::: "memory"); }
template <int n>
FUSEDRNN_DEVICE void cp_async_wait() {
    asm volatile("cp.async.wait_group %0;" ::"n"(n) : "memory");
}

// ---- matrices ------------------------------------------------------------------------------------------

FUSEDRNN_DEVICE void ldmatrix_x2(unsigned (&r)[2], const void* row) {
    asm volatile("ldmatrix.sync.aligned.m8n8.x2.shared.b16 {%0, %1}, [%2];"
                 : "=r"(r[0]), "=r"(r[1])
                 : "r"(shared_address(row))
                 : "memory");
}
FUSEDRNN_DEVICE void ldmatrix_x2_trans(unsigned (&r)[2], const void* row) {
    asm volatile("ldmatrix.sync.aligned.m8n8.x2.trans.shared.b16 {%0, %1}, [%2];"
                 : "=r"(r[0]), "=r"(r[1])
                 : "r"(shared_address(row))
                 : "memory");
}
FUSEDRNN_DEVICE void ldmatrix_x4(unsigned (&r)[4], const void* row) {
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0, %1, %2, %3}, [%4];"
                 : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3])
                 : "r"(shared_address(row))
                 : "memory");
}
FUSEDRNN_DEVICE void ldmatrix_x4_trans(unsigned (&r)[4], const void* row) {
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0, %1, %2, %3}, [%4];"
                 : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3])
                 : "r"(shared_address(row))
                 : "memory");
}

#define FUSEDRNN_MMA(name, shape_and_types)                                                    \
    FUSEDRNN_DEVICE void name(float (&c)[4], const unsigned (&a)[4], const unsigned (&b)[2]) { \
        asm volatile("mma.sync.aligned." shape_and_types                                       \
                     " {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, {%0, %1, %2, %3};"        \
                     : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])                          \
                     : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]));      \
    }
FUSEDRNN_MMA(mma_bf16, "m16n8k16.row.col.f32.bf16.bf16.f32")
FUSEDRNN_MMA(mma_f16, "m16n8k16.row.col.f32.f16.f16.f32")
FUSEDRNN_MMA(mma_tf32, "m16n8k8.row.col.f32.tf32.tf32.f32")
#undef FUSEDRNN_MMA

}  // namespace fusedrnn::cuda

#include "cluster.h"
