// An instruction set is usable where CPUID reports the instructions and XGETBV says that the operating system saves the
// registers: virtual machines and kernels exist that report the first without doing the second.
#include "cpu/features.h"

#include <cstdint>

#if defined(__x86_64__)
#include <cpuid.h>
#if defined(__linux__)
#include <sys/syscall.h>
#include <unistd.h>
#endif
#endif

namespace fusedrnn {

#if defined(__x86_64__)

namespace {

struct Registers {
    unsigned a = 0, b = 0, c = 0, d = 0;
};

Registers cpuid(unsigned leaf, unsigned part = 0) {
    Registers r;
    if (__get_cpuid_count(leaf, part, &r.a, &r.b, &r.c, &r.d) == 0) return {};
    return r;
}

constexpr bool has(unsigned value, unsigned bits) { return (value & bits) == bits; }

// The state components that the operating system saves (XCR0); 0 where it does not say.
std::uint64_t saved_state() {
    constexpr unsigned kOsxsave = 1u << 27;
    if (!has(cpuid(1).c, kOsxsave)) return 0;
    std::uint32_t low = 0, high = 0;
    asm volatile("xgetbv" : "=a"(low), "=d"(high) : "c"(0));
    return (std::uint64_t{high} << 32) | low;
}

constexpr unsigned kXmmYmm = 0x06;         // XCR0: SSE and AVX registers
constexpr unsigned kXmmYmmZmmMask = 0xe6;  // and the mask registers and both parts of the AVX-512 registers

}  // namespace

bool cpu_has_avx2() {
    constexpr unsigned kFma = 1u << 12, kAvx = 1u << 28, kAvx2 = 1u << 5;
    return has(static_cast<unsigned>(saved_state()), kXmmYmm) && has(cpuid(1).c, kFma | kAvx) &&
           has(cpuid(7).b, kAvx2);
}

bool cpu_has_avx512() {
    constexpr unsigned kF = 1u << 16, kDq = 1u << 17, kBw = 1u << 30, kVl = 1u << 31;
    return cpu_has_avx2() && has(static_cast<unsigned>(saved_state()), kXmmYmmZmmMask) &&
           has(cpuid(7).b, kF | kDq | kBw | kVl);
}

bool cpu_has_avx512vnni() {
    constexpr unsigned kVnni = 1u << 11;
    return cpu_has_avx512() && has(cpuid(7).c, kVnni);
}

bool cpu_has_avx512bf16() {
    constexpr unsigned kBf16 = 1u << 5;
    return cpu_has_avx512() && has(cpuid(7, 1).a, kBf16);
}

bool cpu_has_amx() {
#if defined(__linux__)
    constexpr unsigned kTiles = 0x60000;  // XCR0: the tiles of AMX and their sizes
    constexpr unsigned kBf16 = 1u << 22, kTile = 1u << 24, kInt8 = 1u << 25;
    constexpr int kRequestPermission = 0x1023, kTileData = 18;  // ARCH_REQ_XCOMP_PERM, XFEATURE_XTILEDATA
    return cpu_has_avx512bf16() && cpu_has_avx512vnni() &&
           has(static_cast<unsigned>(saved_state()), kTiles) && has(cpuid(7).d, kBf16 | kTile | kInt8) &&
           syscall(SYS_arch_prctl, kRequestPermission, kTileData) == 0;
#else
    return false;
#endif
}

#else

bool cpu_has_avx2() { return false; }
bool cpu_has_avx512() { return false; }
bool cpu_has_avx512vnni() { return false; }
bool cpu_has_avx512bf16() { return false; }
bool cpu_has_amx() { return false; }

#endif

#if defined(__aarch64__)
bool cpu_has_neon() { return true; }  // part of the architecture
#else
bool cpu_has_neon() { return false; }
#endif

}  // namespace fusedrnn
