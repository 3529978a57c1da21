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
    X(mix, 3, fma(a, b, (V::set(1) - a) * c))          \
    X(rest, 2, (V::set(1) - a) * b)                    \
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

inline constexpr int kMaxProgramSlots = 256;

// One of the programs of a cell. Its slots are constants, then the values that the driver places, then those that a tile
// keeps to itself.
struct Program {
    const Instruction* code;
    std::int64_t length;
    const double* constants;
    const std::uint16_t* values;  // of each placed slot which value it is, see CellPrograms
    int constant_count, placed, temporaries;
    int inputs;  // so many placed values come first, which are read; the others are written
    // Bit k: whether it reads state k before the step, and whether that after it, or its gradient; whether mask k.
    std::uint32_t reads_before, reads_after, reads_masks;

    [[gnu::always_inline]] int slots() const { return constant_count + placed + temporaries; }
};

// What is done with whole rows between two programs of a step; backward does the adjoint.
enum class RowKind : int {
    kProduct,    // the products of some gates with weight_hh, of a link in place of h
    kNormalise,  // values less their mean, over the root of their variance, where they are
};
struct RowOperation {
    RowKind kind;
    int value,
        count;  // the gates that the product gives, the values that are normalised: by number, see CellPrograms
    int first_gate;  // of a product
    int link;        // a product's operand
    int number;      // among the operations of its kind
    int saved;       // where forward keeps the first of the normalised values
};
inline constexpr double kNormaliseEps = 1e-5;

// Operations on rows, then a program, which may be empty.
struct ProgramStage {
    Program program;
    const RowOperation* operations;
    int operation_count;
};

// One direction of a step.
struct StagedProgram {
    const ProgramStage* stages;
    int count;
    std::uint32_t reads_before, reads_after, reads_masks;  // of all its programs

    // Whether it is one program and nothing else.
    [[gnu::always_inline]] bool plain() const { return count == 1 && stages->operation_count == 0; }
};

// A value of every unit that is one of two by chance: the same in all steps of a sequence, or anew in each. A call that draws
// none takes their expectation.
struct Mask {
    double p, drawn, other, expected;  // drawn with probability p
    bool each_step;
    bool operator==(const Mask&) const = default;
};
// A word of the random numbers up to `last` gives `drawn`.
struct MaskRule {
    double drawn, other;
    std::uint32_t last;
};
[[gnu::always_inline]] inline MaskRule rule_of(const Mask& mask) {
    const auto threshold = static_cast<std::uint64_t>(mask.p * 4294967296.0 + 0.5);
    if (threshold == 0) return {mask.other, mask.other, 0};
    return {mask.drawn, mask.other, static_cast<std::uint32_t>(threshold - 1)};
}
// One of each state and one of h.
inline constexpr int kMaxMasks = 9;

// What the masks of a call are drawn from (cpu/masks.h), if they are.
struct Draws {
    bool drawn;
    std::uint64_t seed, offset;
    bool operator==(const Draws&) const = default;
};

// What a cell that is data consists of. Its programs' values are numbered: the gates of gx, or in backward their gradients, from
// 0 on; the gates that the recurrent product brings, or their gradients; states after the step, or the gradients that
// reach them; states before the step; values kept for backward; per-unit parameters; and in backward the gradients of
// states before the step and of parameters. Of a step of several stages also links, which one stage leaves for
// another, or their gradients, and in backward the operands of its products. Last its masks.
struct CellPrograms {
    StagedProgram forward, inference, backward;  // inference: forward without what it keeps
    bool hidden_product;                         // whether h is multiplied at all
    bool staged;                                 // whether there are operations on rows
    int first_gates;                             // whose product is that of h
    int link_count, products, norms, mask_count;
    const Mask* mask_list;
    int gates, after, before, saved, units, before_gradients, unit_gradients, links, operands, masks,
        values;  // where each kind begins
};

}  // namespace fusedrnn
