// A libcublas for tests on the host: the functions that cuda/cublas.cpp looks up, with NVIDIA's names and
// calling convention, as plain loops. It counts its products, and refuses what cuBLAS refuses.
//
// FAKE_CUBLAS=no_handle and FAKE_CUBLAS=no_product make these calls fail.
#include <algorithm>
#include <array>
#include <cmath>
#include <cstdint>
#include <cstdlib>
#include <cstring>
#include <map>
#include <string>

namespace {

constexpr int kSuccess = 0, kNotInitialized = 1, kInvalidValue = 7, kExecutionFailed = 13;
constexpr int kFloat32 = 0, kFloat64 = 1, kFloat16 = 2, kBfloat16 = 14;
constexpr int kSumFloat32 = 68, kSumFloat64 = 70, kFactorsTf32 = 77;

struct Handle {
    void* workspace = nullptr;
    std::size_t bytes = 0;
    int mode = 0;
};

std::map<std::array<int, 3>, long> calls;  // by the types of the factors, the result and the computation

bool asked_for(const char* failure) {
    const char* const asked = std::getenv("FAKE_CUBLAS");
    return asked != nullptr && std::string(asked) == failure;
}

// x with so many significant bits, none of them below 2^least.
double rounded(double x, int bits, int least) {
    int exponent = 0;
    std::frexp(x, &exponent);
    const int unit = std::max(exponent - bits, least);
    return std::ldexp(std::nearbyint(std::ldexp(x, -unit)), unit);
}

template <class E>
E element(const void* from, std::int64_t at) {
    E value;
    std::memcpy(&value, static_cast<const char*>(from) + at * std::int64_t{sizeof(E)}, sizeof value);
    return value;
}
template <class E>
void set_element(void* to, std::int64_t at, E value) {
    std::memcpy(static_cast<char*>(to) + at * std::int64_t{sizeof(E)}, &value, sizeof value);
}

double half_value(std::uint16_t bits) {
    const int exponent = bits >> 10 & 31, mantissa = bits & 0x3FF;
    const double sign = (bits & 0x8000) != 0 ? -1 : 1;
    if (exponent == 31) return mantissa == 0 ? sign * HUGE_VAL : std::nan("");
    return sign * std::ldexp(exponent == 0 ? mantissa : mantissa + 1024, std::max(exponent, 1) - 25);
}

double get(const void* from, std::int64_t at, int type) {
    if (type == kFloat64) return element<double>(from, at);
    if (type == kFloat32) return static_cast<double>(element<float>(from, at));
    const auto bits = element<std::uint16_t>(from, at);
    if (type == kFloat16) return half_value(bits);
    const std::uint32_t wide = std::uint32_t{bits} << 16;
    return static_cast<double>(element<float>(&wide, 0));
}

std::uint16_t half_bits(double x) {
    const double size = std::fabs(rounded(x, 11, -24));
    int exponent = 0;
    const double mantissa = std::frexp(size, &exponent);
    unsigned bits = std::signbit(x) ? 0x8000u : 0;
    if (size == 0 || exponent <= -14)
        return static_cast<std::uint16_t>(bits | static_cast<unsigned>(std::ldexp(size, 24)));
    bits |= static_cast<unsigned>(exponent + 14) << 10 |
            (static_cast<unsigned>(std::ldexp(mantissa, 11)) & 0x3FF);
    return static_cast<std::uint16_t>(bits);
}

void set(void* to, std::int64_t at, int type, double x) {
    if (type == kFloat64) return set_element(to, at, x);
    if (type == kFloat32) return set_element(to, at, static_cast<float>(x));
    if (type == kFloat16) return set_element(to, at, half_bits(x));
    const auto narrow = static_cast<float>(rounded(x, 8, -133));
    set_element(to, at, static_cast<std::uint16_t>(element<std::uint32_t>(&narrow, 0) >> 16));
}

double scalar(const void* from, int compute) {
    return get(from, 0, compute == kSumFloat64 ? kFloat64 : kFloat32);
}

bool is_supported(int factors, int result, int compute) {
    if (factors == kFloat64) return result == kFloat64 && compute == kSumFloat64;
    if (factors == kFloat32) return result == kFloat32 && (compute == kSumFloat32 || compute == kFactorsTf32);
    return (factors == kFloat16 || factors == kBfloat16) && (result == factors || result == kFloat32) &&
           compute == kSumFloat32;
}

}  // namespace

#pragma GCC visibility push(default)
extern "C" {

long fake_cublas_calls(int factors, int result, int compute) { return calls[{factors, result, compute}]; }

int cublasCreate_v2(void** handle) {
    if (asked_for("no_handle")) return kNotInitialized;
    *handle = new Handle;
    return kSuccess;
}
int cublasSetStream_v2(void* handle, void*) {
    // As cuBLAS does: the workspace has to be given anew.
    static_cast<Handle*>(handle)->workspace = nullptr;
    return kSuccess;
}
int cublasSetWorkspace_v2(void* handle, void* workspace, std::size_t bytes) {
    if (reinterpret_cast<std::uintptr_t>(workspace) % 256 != 0) return kInvalidValue;
    static_cast<Handle*>(handle)->workspace = workspace;
    static_cast<Handle*>(handle)->bytes = bytes;
    return kSuccess;
}
int cublasSetMathMode(void* handle, int mode) {
    static_cast<Handle*>(handle)->mode = mode;
    return kSuccess;
}
int cublasGetProperty(int which, int* value) {
    *value = which == 0 ? 13 : which == 1 ? 99 : 7;
    return kSuccess;
}
const char* cublasGetStatusName(int status) {
    return status == kExecutionFailed ? "CUBLAS_STATUS_EXECUTION_FAILED"
           : status == kInvalidValue  ? "CUBLAS_STATUS_INVALID_VALUE"
                                      : "CUBLAS_STATUS_NOT_INITIALIZED";
}
const char* cublasGetStatusString(int) { return "as it was asked to"; }

int cublasGemmEx(void* handle, int op_a, int op_b, int m, int n, int k, const void* alpha, const void* a,
                 int a_type, int lda, const void* b, int b_type, int ldb, const void* beta, void* c,
                 int c_type, int ldc, int compute, int) {
    if (asked_for("no_product")) return kExecutionFailed;
    const Handle& h = *static_cast<Handle*>(handle);
    if (h.workspace == nullptr || h.mode != 16 || a_type != b_type ||
        !is_supported(a_type, c_type, compute) || lda < std::max(1, op_a == 0 ? m : k) ||
        ldb < std::max(1, op_b == 0 ? k : n) || ldc < std::max(1, m)) {
        return kInvalidValue;
    }
    // What a workspace holds is nobody's after the call.
    std::memset(h.workspace, 0xFF, std::min<std::size_t>(h.bytes, 4096));
    ++calls[{a_type, c_type, compute}];
    const auto factor = [compute](double x) { return compute == kFactorsTf32 ? rounded(x, 11, -149) : x; };
    const double times = scalar(alpha, compute), keep = scalar(beta, compute);
    for (std::int64_t j = 0; j < n; ++j) {
        for (std::int64_t i = 0; i < m; ++i) {
            double sum = 0;
            for (std::int64_t e = 0; e < k; ++e) {
                sum += factor(get(a, op_a == 0 ? i + e * lda : e + i * lda, a_type)) *
                       factor(get(b, op_b == 0 ? e + j * ldb : j + e * ldb, b_type));
            }
            const std::int64_t at = i + j * ldc;
            set(c, at, c_type, times * sum + (keep == 0 ? 0 : keep * get(c, at, c_type)));
        }
    }
    return kSuccess;
}
}
#pragma GCC visibility pop
