// Clusters on a GPU of compute capability 9.0 and later: a part of device.h.
#pragma once

#include <type_traits>

#include "device/types.h"

namespace fusedrnn::cuda {

#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ < 900
inline constexpr bool kHasClusters = false;
#else
inline constexpr bool kHasClusters = true;
#endif

using Mbarrier = std::uint64_t;

// An address in the shared memory of the cluster.
template <class T>
struct Remote {
    unsigned address;
};

FUSEDRNN_DEVICE int cluster_rank() {
    int r;
    asm volatile("mov.u32 %0, %%cluster_ctarank;" : "=r"(r));
    return r;
}
FUSEDRNN_DEVICE int cluster_size() {
    int r;
    asm volatile("mov.u32 %0, %%cluster_nctarank;" : "=r"(r));
    return r;
}
FUSEDRNN_DEVICE void cluster_barrier() {
    asm volatile("barrier.cluster.arrive.release.aligned;\n\tbarrier.cluster.wait.acquire.aligned;" ::
                     : "memory");
}

template <class T>
FUSEDRNN_DEVICE Remote<T> map_shared(T* p, int rank) {
    unsigned r = 0;

    asm("mapa.shared::cluster.u32 %0, %1, %2;" : "=r"(r) : "r"(shared_address(p)), "r"(rank));
    return {r};
}

namespace cluster {

template <int bytes>
struct Carrier;

#define FUSEDRNN_CLUSTER_CARRIER(bytes, Type, letter, type)                                               \
    template <>                                                                                           \
    struct Carrier<bytes> {                                                                               \
        using Bits = Type;                                                                                \
        static FUSEDRNN_DEVICE Bits load(unsigned from) {                                                 \
            Bits v = 0;                                                                                   \
            asm volatile("ld.shared::cluster." type " %0, [%1];" : "=" letter(v) : "r"(from) : "memory"); \
            return v;                                                                                     \
        }                                                                                                 \
        static FUSEDRNN_DEVICE void store(unsigned to, Bits v) {                                          \
            asm volatile("st.shared::cluster." type " [%0], %1;" ::"r"(to), letter(v) : "memory");        \
        }                                                                                                 \
        static FUSEDRNN_DEVICE void send(unsigned to, Bits v, unsigned mbarrier) {                        \
            asm volatile("st.async.weak.shared::cluster.mbarrier::complete_tx::bytes." type               \
                         " [%0], %1, [%2];" ::"r"(to),                                                    \
                         letter(v), "r"(mbarrier)                                                         \
                         : "memory");                                                                     \
        }                                                                                                 \
    }
FUSEDRNN_CLUSTER_CARRIER(4, std::uint32_t, "r", "b32");
FUSEDRNN_CLUSTER_CARRIER(8, std::uint64_t, "l", "b64");
#undef FUSEDRNN_CLUSTER_CARRIER

template <>
struct Carrier<16> {
    using Bits = Vector16;
    static FUSEDRNN_DEVICE Bits load(unsigned from) {
        Bits v{};

        asm volatile("ld.shared::cluster.v4.b32 {%0, %1, %2, %3}, [%4];"
                     : "=r"(v.word[0]), "=r"(v.word[1]), "=r"(v.word[2]), "=r"(v.word[3])
                     : "r"(from)
                     : "memory");
        return v;
    }
    static FUSEDRNN_DEVICE void store(unsigned to, Bits v) {
        asm volatile("st.shared::cluster.v4.b32 [%0], {%1, %2, %3, %4};" ::"r"(to), "r"(v.word[0]),
                     "r"(v.word[1]), "r"(v.word[2]), "r"(v.word[3])
                     : "memory");
    }
    static FUSEDRNN_DEVICE void send(unsigned to, Bits v, unsigned mbarrier) {
        asm volatile(
            "st.async.weak.shared::cluster.mbarrier::complete_tx::bytes.v4.b32 "
            "[%0], {%1, %2, %3, %4}, [%5];" ::"r"(to),
            "r"(v.word[0]), "r"(v.word[1]), "r"(v.word[2]), "r"(v.word[3]), "r"(mbarrier)
            : "memory");
    }
};

}  // namespace cluster

template <class T>
FUSEDRNN_DEVICE T load_remote(Remote<T> from) {
    return bit_copy<T>(cluster::Carrier<sizeof(T)>::load(from.address));
}
template <class T>
FUSEDRNN_DEVICE void store_remote(Remote<T> to, std::type_identity_t<T> v) {
    using C = cluster::Carrier<sizeof(T)>;
    C::store(to.address, bit_copy<typename C::Bits>(v));
}
template <class T>
FUSEDRNN_DEVICE void st_async(Remote<T> to, std::type_identity_t<T> v, Remote<Mbarrier> mbarrier) {
    using C = cluster::Carrier<sizeof(T)>;
    C::send(to.address, bit_copy<typename C::Bits>(v), mbarrier.address);
}
template <class T>
FUSEDRNN_DEVICE T load_received(const T* p) {
    return *p;
}

FUSEDRNN_DEVICE void mbarrier_init(Mbarrier* p, int arrivals) {
    asm volatile("mbarrier.init.shared::cta.b64 [%0], %1;\n\tfence.mbarrier_init.release.cluster;" ::"r"(
                     shared_address(p)),
                 "r"(arrivals)
                 : "memory");
}
FUSEDRNN_DEVICE void mbarrier_arrive(Mbarrier* p, int bytes = 0) {
    asm volatile("mbarrier.arrive.expect_tx.shared::cta.b64 _, [%0], %1;" ::"r"(shared_address(p)), "r"(bytes)
                 : "memory");
}
FUSEDRNN_DEVICE bool mbarrier_try_wait(Mbarrier* p, unsigned parity) {
    unsigned r = 0;

    asm volatile(
        "{\n\t.reg .pred p;\n\t"
        "mbarrier.try_wait.parity.acquire.cluster.shared::cta.b64 p, [%1], %2;\n\t"
        "selp.u32 %0, 1, 0, p;\n\t}"
        : "=r"(r)
        : "r"(shared_address(p)), "r"(parity)
        : "memory");
    return r != 0;
}

}  // namespace fusedrnn::cuda
