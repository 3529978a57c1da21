// What the drivers get: one layer and direction, forward or backward, in memory of the device. Plain data,
// for any compiler; the same words as in cpu/kernels.h. Equality is that of every member: equal problems are
// launched alike (see graphs.h).
//
// Types of elements: T is the storage type of the math mode, C the type it computes in.
//
//   math       T        C        products
//   ieee       float    float    fused multiply-adds
//   tf32       float    float    tensor cores, factors rounded to 11 significant bits
//   tf32x3     float    float    tensor cores, factors as two such numbers each
//   bf16       bf16     float    tensor cores
//   fp16       fp16     float    tensor cores
//   f64        double   double   fused multiply-adds
//
// Weights, inputs, outputs, the hidden state and the gradients of all but weights are T; the states beyond h,
// the tape and the gradients of weights and biases are C.
#pragma once

#include "cpu/kernels.h"

namespace fusedrnn::cuda {

struct DeviceCell;

enum class Math : int { ieee, tf32, tf32x3, bf16, fp16, f64 };
inline constexpr int kMathCount = 6;
inline constexpr const char* kMathNames[kMathCount] = {"ieee", "tf32", "tf32x3", "bf16", "fp16", "f64"};

inline constexpr std::int64_t storage_bytes(Math math) {
    return math == Math::f64 ? 8 : math == Math::bf16 || math == Math::fp16 ? 2 : 4;
}
inline constexpr std::int64_t compute_bytes(Math math) { return math == Math::f64 ? 8 : 4; }

// A (T, B, n) array with unit stride in the last axis; the other strides count elements and may be anything.
struct Rows {
    void* data;
    std::int64_t t_stride, b_stride;
    bool operator==(const Rows&) const = default;
};
struct ConstRows {
    const void* data;
    std::int64_t t_stride, b_stride;
    bool operator==(const ConstRows&) const = default;
};

// The weights of one layer and direction as the user holds them; null where absent.
struct Weights {
    const void* w_ih;                       // (G*H, I)
    const void* w_hh;                       // (G*H, P)
    const void* b_ih;                       // (G*H)
    const void* b_hh;                       // (G*H)
    const void* w_hr;                       // (P, H)
    const void* units[kMaxUnitParameters];  // (values*H) each, in their order
    bool operator==(const Weights&) const = default;
};
struct WeightGradients {
    void *w_ih, *w_hh, *b_ih, *b_hh, *w_hr, *units[kMaxUnitParameters];
    bool operator==(const WeightGradients&) const = default;
};

// Which rows of a table the inputs are, where dims.V > 0.
struct Lookups {
    const std::int64_t* index;  // (T, B)
    // In backward. The inputs that are row v of the table, by compact index and ascending: inputs[first[v]] to
    // inputs[first[v + 1] - 1].
    const std::int64_t *first, *inputs;

    bool operator==(const Lookups&) const = default;
};

// The arrays of the schedule and the lookups are the host's, and stay as they are until the stream has come past
// the call, but `resets` is the device's.
struct ForwardProblem {
    const DeviceCell* cell;
    Math math;
    Dims dims;
    Schedule schedule;
    Weights weights;
    ConstRows x;  // where inputs are looked up the table: row v at v * b_stride
    Lookups lookups;
    Rows y;
    const void* initial[kMaxStates];  // T (B, P), C (B, H); null is zero
    void* final[kMaxStates];        // the same shapes; may be the arrays in `initial`; null where not wanted
    const void* reset[kMaxStates];  // in place of the state: row b at b * reset_stride; null is zero
    std::int64_t reset_stride[kMaxStates];
    // The tape, null in inference. Rows by compact index.
    void* saved;    // C [rows][H][kSaved]
    void* states;   // C [rows][kStates - 1][H]: the states beyond h after each step
    void* hidden;   // T [rows][H]: h before the projection
    void* moments;  // C [rows][norms]: the inverse of what normalised rows were divided by
    Draws draws;
    bool operator==(const ForwardProblem&) const = default;
};

struct BackwardProblem {
    const DeviceCell* cell;
    Math math;
    Dims dims;
    Schedule schedule;
    Weights weights;
    ConstRows x, y;
    Lookups lookups;
    const void* initial[kMaxStates];
    const void* reset[kMaxStates];
    std::int64_t reset_stride[kMaxStates];
    const void *saved, *states, *hidden, *moments;  // saved null: computed again
    Draws draws;
    ConstRows dy;                    // data null: zero
    const void* dfinal[kMaxStates];  // null: zero
    void* dinitial[kMaxStates];      // null where not wanted
    Rows dx;                         // data null: not wanted
    bool accumulate_dx;
    WeightGradients dparams;  // added to; null where not wanted
    bool operator==(const BackwardProblem&) const = default;
};

}  // namespace fusedrnn::cuda
