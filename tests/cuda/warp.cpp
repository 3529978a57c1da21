// What the lanes of a warp do together: shuffles, ldmatrix, matrix products.
#include <cmath>
#include <cstring>

#include "check.h"

namespace emulator_check {

namespace {

// ---- matrix products, from fragments as the PTX ISA describes them ---------------------------------------

enum class Format { bf16, f16, tf32 };

constexpr int depth(Format format) { return format == Format::tf32 ? 8 : 16; }

// The bits of x, which the format holds exactly. A product in tf32 does not look at the last 13 bits of a
// float.
unsigned element_bits(Format format, float x) {
    if (format == Format::tf32) return as_unsigned(x) | 0x1FFF;
    return (format == Format::bf16 ? to_bf16x2(x, 0) : to_f16x2(x, 0)) & 0xFFFF;
}

// PTX ISA, "Matrix Fragments for mma.m16n8k16 with floating point type" and "... for mma.m16n8k8", .tf32:
// element i of a lane's fragment lies at this row and column.
struct At {
    int row, column;
};
FUSEDRNN_DEVICE At a_at(Format format, int laneid, int i) {
    const int group = laneid >> 2, in_group = laneid % 4;
    if (format == Format::tf32) {
        return {i == 0 || i == 2 ? group : group + 8, i < 2 ? in_group : in_group + 4};
    }
    return {(i >= 0 && i < 2) || (i >= 4 && i < 6) ? group : group + 8,
            i < 4 ? in_group * 2 + (i & 1) : in_group * 2 + (i & 1) + 8};
}
FUSEDRNN_DEVICE At b_at(Format format, int laneid, int i) {
    const int group = laneid >> 2, in_group = laneid % 4;
    if (format == Format::tf32) return {i == 0 ? in_group : in_group + 4, group};
    return {i < 2 ? in_group * 2 + (i & 1) : in_group * 2 + (i & 1) + 8, group};
}
FUSEDRNN_DEVICE At c_at(int laneid, int i) {
    return {i < 2 ? laneid >> 2 : (laneid >> 2) + 8, laneid % 4 * 2 + (i & 1)};
}

// c (16, 8) += a (16, depth) b (depth, 8), for each warp its own.
template <Format format>
FUSEDRNN_KERNEL void multiply(const float* a, const float* b, float* c) {
    constexpr int k = depth(format), per_register = k / 8;
    a += warp() * 16 * k;
    b += warp() * k * 8;
    c += warp() * 16 * 8;
    unsigned fragment_a[4] = {}, fragment_b[2] = {};
    float fragment_c[4];
    for (int i = 0; i < 4 * per_register; ++i) {
        const At at = a_at(format, lane(), i);
        fragment_a[i / per_register] |= element_bits(format, load_constant(a + at.row * k + at.column))
                                        << (i % per_register * 16);
    }
    for (int i = 0; i < 2 * per_register; ++i) {
        const At at = b_at(format, lane(), i);
        fragment_b[i / per_register] |= element_bits(format, load_constant(b + at.row * 8 + at.column))
                                        << (i % per_register * 16);
    }
    for (int i = 0; i < 4; ++i) fragment_c[i] = load(c + c_at(lane(), i).row * 8 + c_at(lane(), i).column);
    if constexpr (format == Format::bf16) mma_bf16(fragment_c, fragment_a, fragment_b);
    if constexpr (format == Format::f16) mma_f16(fragment_c, fragment_a, fragment_b);
    if constexpr (format == Format::tf32) mma_tf32(fragment_c, fragment_a, fragment_b);
    for (int i = 0; i < 4; ++i) store(c + c_at(lane(), i).row * 8 + c_at(lane(), i).column, fragment_c[i]);
}

// The same with bf16 fragments from shared memory: a (16, 16) row by row or, transposed, column by column,
// and b (16, 8) row by row or, transposed, column by column.
template <bool a_columns, bool b_columns>
FUSEDRNN_KERNEL void multiply_shared(const bf16* a, const bf16* b, float* c) {
    bf16* shared_a = shared_memory<bf16>();
    bf16* shared_b = shared_a + 16 * 16;
    for (int i = lane(); i < 16 * 16; i += 32) shared_a[i] = load_constant(a + i);
    for (int i = lane(); i < 16 * 8; i += 32) shared_b[i] = load_constant(b + i);
    warp_barrier();
    unsigned fragment_a[4], fragment_b[2];
    const int row = lane() % 8, matrix = lane() / 8;
    if constexpr (a_columns) {
        ldmatrix_x4_trans(fragment_a, shared_a + (row + matrix / 2 * 8) * 16 + matrix % 2 * 8);
    } else {
        ldmatrix_x4(fragment_a, shared_a + (row + matrix % 2 * 8) * 16 + matrix / 2 * 8);
    }
    if constexpr (b_columns) {
        ldmatrix_x2(fragment_b, shared_b + row * 16 + matrix % 2 * 8);
    } else {
        ldmatrix_x2_trans(fragment_b, shared_b + (row + matrix % 2 * 8) * 8);
    }
    float fragment_c[4] = {};
    mma_bf16(fragment_c, fragment_a, fragment_b);
    for (int i = 0; i < 4; ++i) store(c + c_at(lane(), i).row * 8 + c_at(lane(), i).column, fragment_c[i]);
}

// SplitMix64.
double uniform() {
    static std::uint64_t state = 0;
    std::uint64_t z = state += 0x9E3779B97F4A7C15u;
    z = (z ^ (z >> 30)) * 0xBF58476D1CE4E5B9u;
    z = (z ^ (z >> 27)) * 0x94D049BB133111EBu;
    return static_cast<double>((z ^ (z >> 31)) >> 11) * 0x1p-52 - 1;
}

// Eight significant bits: every format holds them.
std::vector<float> random_matrix(int n) {
    std::vector<float> m(static_cast<std::size_t>(n));
    for (float& x : m) x = static_cast<float>(std::nearbyint(uniform() * 128) * 0x1p-5);
    return m;
}

template <Format format>
void check_product(const char* name) {
    constexpr int k = depth(format), warps = 3;
    for (std::uint64_t s = 1; s <= 5; ++s) {
        seed(s);
        const std::vector<float> a = random_matrix(warps * 16 * k), b = random_matrix(warps * k * 8);
        const std::vector<float> c = random_matrix(warps * 16 * 8);
        Array<float> device_a(a), device_b(b), device_c(c);
        launch(&multiply<format>, Shape{.block = 32 * warps}, nullptr, device_a.data(), device_b.data(),
               device_c.data());
        bool good = true;
        for (int w = 0; w < warps; ++w) {
            for (int i = 0; i < 16 * 8; ++i) {
                double sum = c[static_cast<std::size_t>(w * 128 + i)];
                for (int j = 0; j < k; ++j) {
                    sum += double{a[static_cast<std::size_t>((w * 16 + i / 8) * k + j)]} *
                           double{b[static_cast<std::size_t>((w * k + j) * 8 + i % 8)]};
                }
                good &= double{device_c[w * 128 + i]} == sum;  // small multiples of 2^-10: exact
            }
        }
        expect(good, std::string("product in ") + name);
    }
}

template <bool a_columns, bool b_columns>
void check_shared_product() {
    const std::vector<float> a = random_matrix(16 * 16), b = random_matrix(16 * 8);
    Array<bf16> device_a(16 * 16), device_b(16 * 8);
    Array<float> c(16 * 8);
    for (int i = 0; i < 256; ++i) {
        device_a[a_columns ? i % 16 * 16 + i / 16 : i] = from_float<bf16>(a[static_cast<std::size_t>(i)]);
    }
    for (int i = 0; i < 128; ++i) {
        device_b[b_columns ? i % 8 * 16 + i / 8 : i] = from_float<bf16>(b[static_cast<std::size_t>(i)]);
    }
    launch(&multiply_shared<a_columns, b_columns>, Shape{.shared_bytes = 2 * (256 + 128)}, nullptr,
           device_a.data(), device_b.data(), c.data());
    bool good = true;
    for (int i = 0; i < 128; ++i) {
        double sum = 0;
        for (int j = 0; j < 16; ++j) {
            sum += double{a[static_cast<std::size_t>(i / 8 * 16 + j)]} *
                   double{b[static_cast<std::size_t>(j * 8 + i % 8)]};
        }
        good &= double{c[i]} == sum;
    }
    expect(good, std::string("product through ldmatrix ") + (a_columns ? "trans " : "") +
                     (b_columns ? "columns" : "rows"));
}

// ---- shuffles ------------------------------------------------------------------------------------------

FUSEDRNN_KERNEL void shuffles(int* bad) {
    const int i = lane();
    const bool good = shuffle(i * 10, (i + 5) % 32) == (i + 5) % 32 * 10 &&
                      shuffle_xor(i * 0.5, 7) == (i ^ 7) * 0.5 &&
                      shuffle(static_cast<float>(thread_index()), 3) == static_cast<float>(warp() * 32 + 3);
    store(bad + thread_index(), good ? 0 : 1);
}

FUSEDRNN_KERNEL void bad_row(int at) {
    unsigned r[2];
    ldmatrix_x2(r, shared_memory<char>() + (lane() == 9 ? at : 0));
}

}  // namespace

void check_warp() {
    check_product<Format::bf16>("bf16");
    check_product<Format::f16>("f16");
    check_product<Format::tf32>("tf32");
    check_shared_product<false, false>();
    check_shared_product<false, true>();
    check_shared_product<true, false>();
    check_shared_product<true, true>();
    Array<int> bad(128);
    launch(&shuffles, Shape{.block = 128}, nullptr, bad.data());
    bool good = true;
    for (int i = 0; i < 128; ++i) good &= bad[i] == 0;
    expect(good, "shuffles");
    expect(error_of([] { launch(&bad_row, Shape{.shared_bytes = 256}, nullptr, 240); }).empty(),
           "ldmatrix of the last row");
    expect_error("ldmatrix past shared memory", "outside of the shared memory",
                 [] { launch(&bad_row, Shape{.shared_bytes = 256}, nullptr, 256); });
    expect_error("misaligned ldmatrix", "misaligned",
                 [] { launch(&bad_row, Shape{.shared_bytes = 256}, nullptr, 8); });
}

}  // namespace emulator_check
