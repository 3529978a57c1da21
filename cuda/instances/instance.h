// The kernels of one math mode, compiled and listed. Each .cu file beside this one is one mode.
#pragma once

#include "cells/all.h"
#include "kernels/elementwise.h"
#include "kernels/gemm.h"
#include "kernels/recompute.h"
#include "kernels/rows.h"
#include "kernels/step_backward.h"
#include "kernels/step_forward.h"
#include "kernels/table.h"

namespace fusedrnn::cuda {

template <Math kMath>
class Instance {
    using T = typename MathTraits<kMath>::T;
    using C = typename MathTraits<kMath>::C;
    template <int G, int N, class Args>
    static StepEntry<Args> step(const char* name, void (*kernel)(Args)) {
        using Product = StepProduct<kMath, G, N, true>;
        const int table = Product::shared_bytes(0);
        return {{name, kernel, table},
                Product::shared_bytes(1) - table,
                kLeastStepThreads<N> / 32,
                kStepThreads / 32};
    }

    template <int N, bool kVector>
    static void add_form(MathEntries& e, StepForm form) {
        const int i = static_cast<int>(form);
        e.project[i] = step<1, N>("step_project", &step_project<kMath, N, kVector>);
        e.output_gradient[i] = step<1, N>("step_output_gradient", &step_output_gradient<kMath, N, kVector>);
    }

    struct Names {
        const char *cell, *forward, *backward, *recompute;
    };
    template <class Cell, int N, bool kVector>
    static void add_cell_form(StepCell& c, StepForm form, const Names& names) {
        const int i = static_cast<int>(form);
        c.forward[i] = step<Cell::kGates, N>(names.forward, &step_forward<Cell, kMath, N, kVector>);
        c.backward[i] = step<1, N>(names.backward, &step_backward<Cell, kMath, N, kVector>);
    }
    template <class Cell, unsigned kFamilies>
    static void add_cell(MathEntries& e, const Names& names) {
        if constexpr ((kFamilies & kStep) != 0) {
            StepCell c{};
            c.name = names.cell;
            c.traits = traits_of<Cell>(names.cell);
            add_cell_form<Cell, 1, false>(c, StepForm::any, names);
            add_cell_form<Cell, 1, true>(c, StepForm::vector, names);
            if constexpr (MathTraits<kMath>::kTensor) {
                add_cell_form<Cell, kWideTiles, true>(c, StepForm::wide, names);
            }
            c.recompute = {names.recompute, &recompute_cells<Cell, T, C>, 0};
            e.cells.push_back(c);
        }
    }

    template <Layout kLayout>
    static void add_layout(MathEntries& entries, const char* gemm_name, const char* sum_name) {
        constexpr int i = static_cast<int>(kLayout);
        entries.gemm[i] = {gemm_name, &gemm<kMath, kLayout>, gemm_shared_bytes<kMath>()};
        entries.sum_slices[i] = {sum_name, &sum_slices<kMath, kLayout>, 0};
    }

  public:
    static MathEntries make() {
        MathEntries e{};
#define FUSEDRNN_STEP_CELL(name, Type, driver, families) \
    add_cell<Type, families>(e, {#name, "step_forward " #name, "step_backward " #name, "recompute " #name});
        FUSEDRNN_CELLS(FUSEDRNN_STEP_CELL)
#undef FUSEDRNN_STEP_CELL
        add_form<1, false>(e, StepForm::any);
        add_form<1, true>(e, StepForm::vector);
        if constexpr (MathTraits<kMath>::kTensor) add_form<kWideTiles, true>(e, StepForm::wide);
        e.chunk = kChunk<T>;
        e.gemm_tile = kGemmTile<kMath>;
        add_layout<Layout::kNT>(e, "gemm NT", "sum_slices NT");
        add_layout<Layout::kNN>(e, "gemm NN", "sum_slices NN");
        add_layout<Layout::kTN>(e, "gemm TN", "sum_slices TN");
        e.column_sums = {"column_sums", &column_sums<T, C>,
                         kRowsThreads * kPiece<T> * static_cast<int>(sizeof(C))};
        e.transpose = {"transpose", &transpose<T>, transpose_shared_bytes<T>()};
        e.gather_rows = {"gather_rows", &gather_rows<T>, 0};
        e.scatter_rows = {"scatter_rows", &scatter_rows<T>, 0};
        e.clear_padding = {"clear_padding", &clear_padding<T>, 0};
        e.look_up_inputs = {"look_up_inputs", &look_up<T>, 0};
        e.look_up_gates = {"look_up_gates", &look_up<C>, 0};
        e.sum_lookups = {"sum_lookups", &sum_lookups<T, C>, kRowsThreads * static_cast<int>(sizeof(C))};
        e.gather_hidden = {"gather_hidden", &gather_hidden<T>, 0};
        e.final_state = {"final_state", &final_state<T, C>, 0};
        if constexpr (sizeof(T) == 2) e.round = {"round_elements", &round_elements<T>, 0};
        e.dropout = {"dropout", &dropout<T, C>, 0};
        return e;
    }
};

}  // namespace fusedrnn::cuda

// entries_<math>(), which kernel_table.cpp lists.
#define FUSEDRNN_INSTANCE(math)                                          \
    namespace fusedrnn::cuda {                                           \
    const MathEntries& entries_##math() {                                \
        static const MathEntries entries = Instance<Math::math>::make(); \
        return entries;                                                  \
    }                                                                    \
    }
