// The operations of programs (program.h) and what a program is made of. Plain data, for the bindings too.
//
// FUSEDRNN_PROGRAM_OPERATIONS(X) expands X(name, arity, expression) for each operation of vectors a, b, c of a type V.
// src/fusedrnn/symbolic/operations.py has the same list.
#pragma once

#include <cstdint>

#define FUSEDRNN_PROGRAM_OPERATIONS(X)                 \
    X(copy, 1, a)                                      \
    X(add, 2, a + b)                                   \
    X(subtract, 2, a - b)                              \
    X(multiply, 2, a* b)                               \
    X(divide, 2, a / b)                                \
    X(fma, 3, fma(a, b, c))                            \
    X(sigmoid_slope, 3, a * b * (c * (V::set(1) - c))) \
    X(tanh_slope, 3, a * b * (V::set(1) - c * c))      \
    X(less, 2, zero_or_one<V>(less(a, b)))             \
    X(less_equal, 2, less_equal(a, b))                 \
    X(where, 3, select(less(V::set(0), a), b, c))      \
    X(minimum, 2, minimum(a, b))                       \
    X(maximum, 2, maximum(a, b))                       \
    X(abs, 1, abs(a))                                  \
    X(relu, 1, relu(a))                                \
    X(sqrt, 1, sqrt(a))                                \
    X(exp, 1, exp(a))                                  \
    X(log, 1, log(a))                                  \
    X(sigmoid, 1, sigmoid(a))                          \
    X(tanh, 1, tanh(a))                                \
    X(softplus, 1, softplus(a))                        \
    X(elu, 1, elu(a))                                  \
    X(erf, 1, erf(a))                                  \
    X(sin, 1, sin(a))                                  \
    X(cos, 1, cos(a))

namespace fusedrnn {

enum ProgramOperation : std::uint16_t {
#define FUSEDRNN_PROGRAM_OPERATION(name, arity, expression) kProgram_##name,
    FUSEDRNN_PROGRAM_OPERATIONS(FUSEDRNN_PROGRAM_OPERATION)
#undef FUSEDRNN_PROGRAM_OPERATION
        kProgramOperations
};

inline constexpr struct {
    const char* name;
    int arity;
} kProgramOperationList[kProgramOperations] = {
#define FUSEDRNN_PROGRAM_OPERATION(name, arity, expression) {#name, arity},
    FUSEDRNN_PROGRAM_OPERATIONS(FUSEDRNN_PROGRAM_OPERATION)
#undef FUSEDRNN_PROGRAM_OPERATION
};

// slots[to] = operation(slots[a], slots[b], slots[c]); what an operation does not take is any slot that exists.
struct Instruction {
    std::uint16_t operation, to, a, b, c;
};

// Where the vectors of a slot are: that of row i at `at` + i * stride.
template <class T>
struct Slot {
    T* at;
    std::int64_t stride;
};

}  // namespace fusedrnn
