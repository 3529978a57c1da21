// The device layer on the host: every thread of the grid is a fiber. Its contract stands in
// device/device.h. The last argument of a function is where it is called, and left to its default.
#pragma once

#include <cstring>
#include <type_traits>

#include "../../config.h"
#include "device/types.h"

#define FUSEDRNN_KERNEL
#define FUSEDRNN_LAUNCH_BOUNDS(threads, blocks)
#define FUSEDRNN_DEVICE inline
#define FUSEDRNN_UNROLL
#define FUSEDRNN_UNROLL_FEW
#define FUSEDRNN_KEEP_LOOP

namespace fusedrnn::cuda {

namespace emulator {

struct Where {
    int thread, block_threads;
    Int3 block, grid;
};
const Where& where();
void* shared_memory();
void block_barrier(Site site);
void warp_barrier(Site site);
void shuffle(void* v, int size, int from, Site site);  // in place
void shuffle_xor(void* v, int size, int mask, Site site);
void load_constant(void* to, const void* p, int size, Site site);
void load(void* to, const void* p, int size, Site site);
void load_relaxed(void* to, const void* p, int size, Site site);
void store(void* p, const void* from, int size, Site site);
void store_relaxed(void* p, const void* from, int size, Site site);
unsigned load_acquire(const unsigned* p, Site site);
void store_release(unsigned* p, unsigned v, Site site);
void add_release(unsigned* p, unsigned v, Site site);
void fence(Site site);
void spin_pause(Site site);
[[noreturn]] void trap(Site site);
void cp_async16(void* shared, const void* global, int bytes, Site site);
void cp_async_commit();
void cp_async_wait(int n, Site site);
int cluster_rank();
int cluster_size();
void cluster_barrier(Site site);
void* map_shared(void* p, int rank, Site site);
void load_remote(void* to, void* at, int rank, int size, Site site);
void store_remote(void* at, int rank, const void* from, int size, Site site);
void st_async(void* at, int rank, const void* from, int size, void* mbarrier, int mbarrier_rank, Site site);
void load_received(void* to, const void* p, int size, Site site);
void mbarrier_init(void* p, int arrivals, Site site);
void mbarrier_arrive(void* p, int bytes, Site site);
bool mbarrier_try_wait(void* p, unsigned parity, Site site);
void ldmatrix(unsigned* r, int matrices, bool transposed, const void* row, Site site);
void mma_bf16(float* c, const unsigned* a, const unsigned* b, Site site);
void mma_f16(float* c, const unsigned* a, const unsigned* b, Site site);
void mma_tf32(float* c, const unsigned* a, const unsigned* b, Site site);

std::uint16_t bf16_bits(float x);
std::uint16_t f16_bits(float x);
float from_f16_bits(std::uint16_t bits);
unsigned tf32_bits(float x);

template <class T>
inline constexpr bool is_plain =
    std::is_trivially_copyable_v<T> &&
    (sizeof(T) == 1 || sizeof(T) == 2 || sizeof(T) == 4 || sizeof(T) == 8 || sizeof(T) == 16);

}  // namespace emulator

using emulator::Site;

// ---- where am I ----------------------------------------------------------------------------------------

inline int thread_index() { return emulator::where().thread; }
inline int block_threads() { return emulator::where().block_threads; }
inline int lane() { return thread_index() % 32; }
inline int warp() { return thread_index() / 32; }
inline Int3 block_index() { return emulator::where().block; }
inline Int3 grid_size() { return emulator::where().grid; }

// ---- the block and the warp ----------------------------------------------------------------------------

template <class T>
T* shared_memory() {
    return static_cast<T*>(emulator::shared_memory());
}
inline void block_barrier(Site site = Site::here()) { emulator::block_barrier(site); }
inline void warp_barrier(Site site = Site::here()) { emulator::warp_barrier(site); }
template <class T>
T shuffle(T v, int from, Site site = Site::here()) {
    static_assert(emulator::is_plain<T> && (sizeof(T) == 4 || sizeof(T) == 8));
    emulator::shuffle(&v, sizeof v, from, site);
    return v;
}
template <class T>
T shuffle_xor(T v, int mask, Site site = Site::here()) {
    static_assert(emulator::is_plain<T> && (sizeof(T) == 4 || sizeof(T) == 8));
    emulator::shuffle_xor(&v, sizeof v, mask, site);
    return v;
}

// ---- conversions ---------------------------------------------------------------------------------------

inline float as_float(unsigned bits) {
    float x;
    std::memcpy(&x, &bits, sizeof x);
    return x;
}
inline unsigned as_unsigned(float x) {
    unsigned bits;
    std::memcpy(&bits, &x, sizeof bits);
    return bits;
}
inline unsigned to_bf16x2(float low, float high) {
    return emulator::bf16_bits(low) | static_cast<unsigned>(emulator::bf16_bits(high)) << 16;
}
inline unsigned to_f16x2(float low, float high) {
    return emulator::f16_bits(low) | static_cast<unsigned>(emulator::f16_bits(high)) << 16;
}
inline unsigned round_tf32(float x) { return emulator::tf32_bits(x); }
inline float to_float(float x) { return x; }
inline float to_float(bf16 x) { return as_float(static_cast<unsigned>(x.bits) << 16); }
inline float to_float(fp16 x) { return emulator::from_f16_bits(x.bits); }
template <class T>
T from_float(float x);
template <>
inline float from_float<float>(float x) {
    return x;
}
template <>
inline bf16 from_float<bf16>(float x) {
    return {emulator::bf16_bits(x)};
}
template <>
inline fp16 from_float<fp16>(float x) {
    return {emulator::f16_bits(x)};
}

// ---- global memory -------------------------------------------------------------------------------------

template <class T>
T load_constant(const T* p, Site site = Site::here()) {
    static_assert(emulator::is_plain<T>);
    T v;
    emulator::load_constant(&v, p, sizeof v, site);
    return v;
}
template <class T>
T load(const T* p, Site site = Site::here()) {
    static_assert(emulator::is_plain<T>);
    T v;
    emulator::load(&v, p, sizeof v, site);
    return v;
}
template <class T>
void store(T* p, T v, Site site = Site::here()) {
    static_assert(emulator::is_plain<T>);
    emulator::store(p, &v, sizeof v, site);
}
template <class T>
T load_relaxed(const T* p, Site site = Site::here()) {
    static_assert(emulator::is_plain<T>);
    T v;
    emulator::load_relaxed(&v, p, sizeof v, site);
    return v;
}
template <class T>
void store_relaxed(T* p, T v, Site site = Site::here()) {
    static_assert(emulator::is_plain<T>);
    emulator::store_relaxed(p, &v, sizeof v, site);
}
inline Vector16 load16(const void* p, Site site = Site::here()) {
    return load(static_cast<const Vector16*>(p), site);
}
inline Vector16 load16_constant(const void* p, Site site = Site::here()) {
    return load_constant(static_cast<const Vector16*>(p), site);
}
inline Vector16 load16_relaxed(const void* p, Site site = Site::here()) {
    return load_relaxed(static_cast<const Vector16*>(p), site);
}
inline void store16(void* p, Vector16 v, Site site = Site::here()) {
    store(static_cast<Vector16*>(p), v, site);
}

inline unsigned load_acquire(const unsigned* p, Site site = Site::here()) {
    return emulator::load_acquire(p, site);
}
inline void store_release(unsigned* p, unsigned v, Site site = Site::here()) {
    emulator::store_release(p, v, site);
}
inline void add_release(unsigned* p, unsigned v, Site site = Site::here()) {
    emulator::add_release(p, v, site);
}
inline void fence(Site site = Site::here()) { emulator::fence(site); }
inline void spin_pause(Site site = Site::here()) { emulator::spin_pause(site); }
[[noreturn]] inline void trap(Site site = Site::here()) { emulator::trap(site); }
inline float exp2_approximate(float x) { return __builtin_exp2f(x); }
inline float reciprocal_approximate(float x) { return 1 / x; }
template <class T>
T* opaque(T* p) {
    return p;
}

inline void cp_async16(void* shared, const void* global, int bytes = 16, Site site = Site::here()) {
    emulator::cp_async16(shared, global, bytes, site);
}
inline void cp_async_commit() { emulator::cp_async_commit(); }
template <int n>
void cp_async_wait(Site site = Site::here()) {
    static_assert(n >= 0);
    emulator::cp_async_wait(n, site);
}

// ---- clusters ------------------------------------------------------------------------------------------

inline constexpr bool kHasClusters = true;
using Mbarrier = std::uint64_t;

template <class T>
struct Remote {
    T* at;  // in the memory of that block
    int rank;
};

inline int cluster_rank() { return emulator::cluster_rank(); }
inline int cluster_size() { return emulator::cluster_size(); }
inline void cluster_barrier(Site site = Site::here()) { emulator::cluster_barrier(site); }
template <class T>
Remote<T> map_shared(T* p, int rank, Site site = Site::here()) {
    return {static_cast<T*>(emulator::map_shared(p, rank, site)), rank};
}
template <class T>
T load_remote(Remote<T> from, Site site = Site::here()) {
    static_assert(emulator::is_plain<T> && sizeof(T) >= 4);
    T v;
    emulator::load_remote(&v, from.at, from.rank, sizeof v, site);
    return v;
}
template <class T>
void store_remote(Remote<T> to, std::type_identity_t<T> v, Site site = Site::here()) {
    static_assert(emulator::is_plain<T> && sizeof(T) >= 4);
    emulator::store_remote(to.at, to.rank, &v, sizeof v, site);
}
template <class T>
void st_async(Remote<T> to, std::type_identity_t<T> v, Remote<Mbarrier> mbarrier, Site site = Site::here()) {
    static_assert(emulator::is_plain<T> && sizeof(T) >= 4);
    emulator::st_async(to.at, to.rank, &v, sizeof v, mbarrier.at, mbarrier.rank, site);
}
template <class T>
T load_received(const T* p, Site site = Site::here()) {
    static_assert(emulator::is_plain<T> && sizeof(T) >= 4);
    T v;
    emulator::load_received(&v, p, sizeof v, site);
    return v;
}
inline void mbarrier_init(Mbarrier* p, int arrivals, Site site = Site::here()) {
    emulator::mbarrier_init(p, arrivals, site);
}
inline void mbarrier_arrive(Mbarrier* p, int bytes = 0, Site site = Site::here()) {
    emulator::mbarrier_arrive(p, bytes, site);
}
inline bool mbarrier_try_wait(Mbarrier* p, unsigned parity, Site site = Site::here()) {
    return emulator::mbarrier_try_wait(p, parity, site);
}

// ---- matrices ------------------------------------------------------------------------------------------

inline void ldmatrix_x2(unsigned (&r)[2], const void* row, Site site = Site::here()) {
    emulator::ldmatrix(r, 2, false, row, site);
}
inline void ldmatrix_x2_trans(unsigned (&r)[2], const void* row, Site site = Site::here()) {
    emulator::ldmatrix(r, 2, true, row, site);
}
inline void ldmatrix_x4(unsigned (&r)[4], const void* row, Site site = Site::here()) {
    emulator::ldmatrix(r, 4, false, row, site);
}
inline void ldmatrix_x4_trans(unsigned (&r)[4], const void* row, Site site = Site::here()) {
    emulator::ldmatrix(r, 4, true, row, site);
}
inline void mma_bf16(float (&c)[4], const unsigned (&a)[4], const unsigned (&b)[2],
                     Site site = Site::here()) {
    emulator::mma_bf16(c, a, b, site);
}
inline void mma_f16(float (&c)[4], const unsigned (&a)[4], const unsigned (&b)[2], Site site = Site::here()) {
    emulator::mma_f16(c, a, b, site);
}
inline void mma_tf32(float (&c)[4], const unsigned (&a)[4], const unsigned (&b)[2],
                     Site site = Site::here()) {
    emulator::mma_tf32(c, a, b, site);
}

}  // namespace fusedrnn::cuda
