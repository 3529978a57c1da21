// What the bindings hand to the kernels, and the table of kernels that every instruction set exports.
//
// Plain data only: this header is compiled into the baseline and into every instruction set's objects.
#pragma once

#include <cstdint>

#include "cells/program_list.h"
#include "cells/schema.h"
#include "cpu/team.h"

namespace fusedrnn {

struct RecurrentCell;
struct QuantizedWeights;

// What the products of float32 take: float32 itself, bfloat16, or a sum of two bfloat16 for each factor and three products of
// them.
enum class Compute { kFloat32, kBf16, kBf16x3 };

// Sizes of one layer and direction. P is the width of the hidden state: H, or the projection's size. V: inputs are looked
// up in a table of V rows; 0: they are a sequence.
struct Dims {
    std::int64_t T, B, I, H, P, V;
    bool projected;
    bool whole_rows = false;  // whether a step works on whole rows of units, which no two threads may share
    Compute compute = Compute::kFloat32;
    bool operator==(const Dims&) const = default;
};

// Which rows are alive at which step. Rows are taken in the order of descending length, so that those alive at step t
// are the first active[t] of `order`; row p of step t has the compact index offset[t] + p.
struct Schedule {
    const std::int64_t* order;   // (B) position -> row of the batch
    const std::int64_t* active;  // (T + 1), active[T] = 0
    const std::int64_t* offset;  // (T + 1)
    const std::int64_t* length;  // (B) by position
    const std::uint8_t* resets;  // (T, B) or null
    bool reverse;
    bool operator==(const Schedule&) const = default;
};

// A (T, B, n) array with unit stride in the last axis; the other strides count elements and may be anything.
template <class T>
struct Sequence {
    T* data;
    std::int64_t t_stride, b_stride;
    [[gnu::always_inline]] T* row(std::int64_t t, std::int64_t b) const {
        return data + t * t_stride + b * b_stride;
    }
};

// The parameters of one layer and direction as the user holds them, in the order of the cell's schema; null where absent.
template <class T>
struct Params {
    T* of[kMaxParameters];
};

// The same weights in panels (see gemm.h). The last three serve backward and may be null.
template <class T>
struct Packed {
    // [H/L][I][G][L], [H/L][P][G][L], [P/L][H][L]; of a cell that is data [G][H/L][I][L], [G][H/L][P][L]
    T *w_ih, *w_hh, *w_hr;
    // [H/L][G][L], the last panel as that of the weights: the bias of gx and, where the gates are split, of gh
    T *b_x, *b_h;
    T* units;                           // [H/L][values][L]: what each unit has of all per-unit parameters
    T *w_ih_t, *w_hh_t, *w_hr_t;        // [I/L][K][L], [P/L][K][L], [H/L][P][L]; K: see pack_columns
    const QuantizedWeights* quantized;  // in place of all others, for QuantizedKernels
};

template <class T>
struct ForwardProblem {
    const RecurrentCell* cell;
    Dims dims;
    Schedule schedule;
    Packed<T> weights;
    Sequence<const T> x;        // where inputs are looked up the table: row v is x.row(0, v)
    const std::int64_t* index;  // (T, B): which row of the table each input is
    Sequence<T> y;
    const T* initial[kMaxStates];  // (B, P), then (B, H); null is zero
    T* final[kMaxStates];          // the same shapes; may be the arrays in `initial` for a single step
    const T* reset
        [kMaxStates];  // what a reset puts in place of the state: row b at b * reset_stride; null is zero
    std::int64_t reset_stride[kMaxStates];
    // Where x is another call's y and both run at once, or null: steps of x that are there, steps of y that are.
    const Progress* input_progress;
    Progress* output_progress;
    bool backwards;  // begin with the last panels; true in every other call of a stream
    Draws draws;
    // The tape, null in inference. Rows by compact index.
    T* saved;    // per step [H/L][active][kSaved][L]
    T* states;   // [rows][kStates - 1][H rounded up to L]: the states beyond h after each step
    T* hidden;   // [rows][H rounded up]: h before the projection
    T* moments;  // [rows][norms]: what normalised rows were divided by, its inverse
};

// Where what makes the gradients of weights is to be left, each row of the batch apart; null: not wanted. Steps that did
// not run are left out.
template <class T>
struct BlockRows {
    T *x, *h;      // (B, T, I) and (B, T, P): what W_ih and W_hh were multiplied by
    T *dgx, *dgh;  // (B, T, G H): the gradients of the products; dgh only where they are not one
};

template <class T>
struct BackwardProblem {
    const RecurrentCell* cell;
    Dims dims;
    Schedule schedule;
    Packed<T> weights;
    Sequence<const T> x, y;
    const std::int64_t* index;
    const T* initial[kMaxStates];
    const T* reset[kMaxStates];
    std::int64_t reset_stride[kMaxStates];
    const T *saved, *states, *hidden, *moments;  // saved null: computed again, moments too
    Sequence<const T> dy;                        // data null: zero
    const T* dfinal[kMaxStates];                 // null: zero
    Sequence<const T> dsteps[kMaxStates];        // of the states beyond h after every step; data null: zero
    T* dinitial[kMaxStates];
    T* dreset[kMaxStates];  // added to, (B, P) and (B, H); null: not wanted
    Sequence<T> dx;         // laid out as x; data null: not wanted
    bool accumulate_dx;
    Draws draws;
    Params<T> dparams;  // added to; null where not wanted
    BlockRows<T> rows;
};

// Where a call's steps find the state before them: previous_state.h.
struct StateSource {
    Sequence<const void> y;
    const void* initial[kMaxStates];
    const void* reset[kMaxStates];
    std::int64_t initial_stride[kMaxStates], reset_stride[kMaxStates];
    const std::uint8_t* resets;  // (T, B) or null
    std::int64_t B, H, P;
    std::int64_t width;  // of the states beyond h that a step leaves: H, or more
    bool reverse;
};

// A time step. `next` is how many rows are alive at t + 1.
struct TimeStep {
    std::int64_t t, next;
};

// Of a ForwardProblem or a BackwardProblem of so many states.
template <class Problem>
[[gnu::always_inline]] inline StateSource state_source(const Problem& p, int states = kMaxStates) {
    StateSource s{};
    s.y = {p.y.data, p.y.t_stride, p.y.b_stride};
    s.resets = p.schedule.resets, s.reverse = p.schedule.reverse;
    s.B = p.dims.B, s.H = p.dims.H, s.P = p.dims.P, s.width = p.dims.H;
    for (int k = 0; k < states; ++k) {
        s.initial[k] = p.initial[k], s.initial_stride[k] = k == 0 ? p.dims.P : p.dims.H;
        s.reset[k] = p.reset[k], s.reset_stride[k] = p.reset_stride[k];
    }
    return s;
}

// A cell that is data, for the kernels of another device; both stay where they are.
struct CellDefinition {
    const CellTraits* traits;
    const CellPrograms* programs;
};
// What the module of the CPU's kernels calls a capsule of one.
inline constexpr const char* kCellDefinition = "fusedrnn.CellDefinition";

// Of W_hh: bit e % 8 of byte e / 8 whether element e is kept, with kMaskRoom bytes after the last that may be read, and what
// those are multiplied by.
template <class T>
struct HiddenMask {
    const std::uint8_t* kept;
    T scale;
};
inline constexpr std::int64_t kMaskRoom = 4;

template <class T>
struct RecurrentKernels {
    // Bytes of the packed weights; pack() sets the pointers into `block`, aligned to 64, and fills it, with one thread;
    // it ends early once the team is cancelled. Without W_hh the rest.
    std::int64_t (*packed_bytes)(const RecurrentCell&, const Dims&, bool backward);
    void (*pack)(const RecurrentCell&, const Dims&, const Params<const T>&, bool backward, void* block,
                 Packed<T>& out, Team&);
    // The same of W_hh alone, with a mask on it, in place of the one that `out` had.
    std::int64_t (*hidden_bytes)(const RecurrentCell&, const Dims&, bool backward);
    void (*pack_hidden)(const RecurrentCell&, const Dims&, const T* w_hh, const HiddenMask<T>& mask,
                        bool backward, void* block, Packed<T>& out, Team&);
    // Bytes of workspace, aligned to 64, for a team of the given size.
    std::int64_t (*forward_workspace)(const RecurrentCell&, const Dims&, int threads);
    void (*forward)(const ForwardProblem<T>&, Team&, void* workspace);
    std::int64_t (*backward_workspace)(const RecurrentCell&, const Dims&, bool recompute, int threads);
    void (*backward)(const BackwardProblem<T>&, Team&, void* workspace);
};

template <class T>
struct DenseKernels {
    // y (N, O) = x (N, I) W^T + b, and its gradients; dw and db are added to, dx may be null.
    std::int64_t (*linear_workspace)(std::int64_t n, std::int64_t in, std::int64_t out, int threads);
    void (*linear_forward)(std::int64_t n, std::int64_t in, std::int64_t out, const T* x, const T* w,
                           const T* b, T* y, Team&, void* workspace);
    void (*linear_backward)(std::int64_t n, std::int64_t in, std::int64_t out, const T* x, const T* w,
                            const T* dy, T* dx, T* dw, T* db, Team&, void* workspace);
};

enum WeightFormat : int { kBf16, kInt8, kWeightFormats };

// The weights of one layer and direction in fewer bits, N = 2 (bf16) or 4 (int8) of them together (see
// quantized.h); null where absent.
struct QuantizedWeights {
    struct Matrix {
        void* w;              // [H/L][I/N][G][L][N], [H/L][P/N][G][L][N], [P/L][H/N][L][N]
        float* scale;         // int8: of its rows, [H/L][G][L], [H/L][G][L], [P/L][L]
        std::int64_t groups;  // how many of N there are, the padding with them
    } ih, hh, hr;
    float *b_x, *b_h, *units;  // [H/L][G][L], [H/L][G][L], [H/L][values][L]

    // As a problem has them.
    Packed<float> packed() const {
        Packed<float> p{};
        p.quantized = this;
        return p;
    }
};

struct QuantizedKernels {
    // As RecurrentKernels'; inference, by one thread.
    std::int64_t (*packed_bytes)(const RecurrentCell&, const Dims&);
    void (*pack)(const RecurrentCell&, const Dims&, const Params<const float>&, void* block,
                 QuantizedWeights& out, Team&);
    std::int64_t (*forward_workspace)(const RecurrentCell&, const Dims&, int threads);
    void (*forward)(const ForwardProblem<float>&, Team&, void* workspace);
};

// A cell: what it is and its kernels. Whoever calls them has a pointer to one; its kernels get it again.
struct RecurrentCell : CellTraits {
    RecurrentKernels<float> f32;
    RecurrentKernels<double> f64;
    const QuantizedKernels* quantized;    // by format; null where the cell has none
    const CellPrograms* programs;         // of a cell that is data, else null
    Compute compute = Compute::kFloat32;  // of f32

    template <class T>
    const RecurrentKernels<T>& kernels() const;
};
template <>
inline const RecurrentKernels<float>& RecurrentCell::kernels<float>() const {
    return f32;
}
template <>
inline const RecurrentKernels<double>& RecurrentCell::kernels<double>() const {
    return f64;
}

inline constexpr int kDigestLanes = 64;
struct Digest {
    std::uint32_t lanes[kDigestLanes];
};

template <class T>
struct KernelTable {
    int lanes;
    // Continues a digest, zero at first, with `bytes` more.
    void (*fingerprint)(const void* data, std::int64_t bytes, Digest& digest);
    DenseKernels<T> dense;
    // Of the compiled cells, in the order of cells/all.h.
    const CellTraits* traits;
    const RecurrentKernels<T>* cells;
    int cell_count;
    const QuantizedKernels (
        *quantized)[kWeightFormats];  // float32 only, else null; null kernels where there are none
    RecurrentKernels<T> program;      // of every cell that is data
};

template <class T>
struct LayerTable;  // layers/layer_table.h
template <class T>
struct DecoderKernels;  // sequence/decoder_table.h

struct Cells {
    const RecurrentCell* first;
    int count;
    const RecurrentCell* begin() const { return first; }
    const RecurrentCell* end() const { return first + count; }
};

struct Kernels {
    const char* isa;
    const KernelTable<float>* f32;
    const KernelTable<double>* f64;
    const LayerTable<float>* layers_f32;
    const LayerTable<double>* layers_f64;
    Cells cells;
};

// The kernels in use, chosen once: FUSEDRNN_ISA, or the best that CPU and build have.
const Kernels& kernels();
// The handle of a cell that is data: its kernels are those in use. `programs` stay where they are.
RecurrentCell program_cell(const CellTraits& traits, const CellPrograms& programs);
template <class T>
const KernelTable<T>& kernel_table();
// Of float32 with products in bfloat16, and for what instruction set; null where CPU or build have none.
struct Bf16Kernels {
    const char* isa;
    const KernelTable<float>* table;
    const DecoderKernels<float>* decoder;
};
const Bf16Kernels& bf16_kernels(Compute compute);
// Of a cell that has some, the best for weights of this format.
const QuantizedKernels& quantized_kernels(const RecurrentCell& cell, int format);
// The handle of a cell whose float32 products take bfloat16, the same at every call; null where there are no such kernels.
const RecurrentCell* bf16_cell(const RecurrentCell& cell, Compute compute);
template <>
const KernelTable<float>& kernel_table<float>();
template <>
const KernelTable<double>& kernel_table<double>();

}  // namespace fusedrnn
