// Backward of a step whose h is projected.
#pragma once

#include "cpu/backward_program.h"

namespace fusedrnn::FUSEDRNN_ISA {

template <class Cell, class T>
void Backward<Cell, T>::project_gradients(const Part& part, Member& m, int member, const Place& later,
                                          const Place& here, std::int64_t rows, std::int64_t continuing) {
    const PreviousStates<Cell, T> previous_states = previous();
    const std::int64_t at_once = panels_at_once<1>(rows);
    for (std::int64_t r = 0; r < rows; r += kRowGroup) {
        const std::int64_t n = smaller(kRowGroup, rows - r);
        for (std::int64_t u = 0; u < plan_.p_panels; u += at_once) {
            const std::int64_t count = smaller(at_once, plan_.p_panels - u);
            if (team_.cancelled(member, n * count * panel_work())) return;
            recurrent_product(part, m, later, u, count, r, larger(0, smaller(n, continuing - r)), kRowGroup);
            for (std::int64_t v = 0; v < count; ++v) {
                const std::int64_t unit = (u + v) * L;
                for (std::int64_t i = r; i < r + n; ++i) {
                    const std::int64_t position = part.position(i);
                    const bool cut =
                        i < continuing && previous_states.is_cut(later.t, row_of(position), position);
                    const V dh = hidden_gradient(here, position, unit, i < continuing, cut,
                                                 m.acc + (v * kRowGroup + i - r) * L);
                    store_padded(dh, projected_gradient(here, u + v, position), p_.dims.P - unit);
                }
            }
        }
        for (std::int64_t i = 0; i < n; ++i) m.a_rows[i] = projected_gradient(here, 0, part.position(r + i));
        const std::int64_t group = group_panels<Cell, 1>(*this, plan_.panels, rows);
        const std::int64_t room = group_rows<Cell>(rows);
        for (std::int64_t u = 0; u < plan_.panels; u += group) {
            GemmArgs<T> args = paneled_rows<T>(m.a_rows, n, plan_.p_panels, L, plan_.block_rows * L,
                                               last_units<T>(p_.dims.P));
            take_panels<T>(args, p_.weights.w_hr_t, {u, smaller(u + group, plan_.panels)}, p_.dims.H);
            args.out = m.acc;
            args.out_panel = room * L;
            args.out_row = L;
            gemm<T, 1>(args);
            if (team_.cancelled(member, args.n * args.panels * args.b_panel)) return;
            if constexpr (Sizes::kIsProgram) {
                run_program_cells(part, m, later, here, {u, u + args.panels}, r, n, continuing, room);
                continue;
            }
            for (std::int64_t v = 0; v < args.panels; ++v) {
                for (std::int64_t i = r; i < r + n; ++i) {
                    const std::int64_t position = part.position(i);
                    const bool cut =
                        i < continuing && previous_states.is_cut(later.t, row_of(position), position);
                    if constexpr (!Sizes::kIsProgram)
                        cell_backward(m, here, u + v, i, position, V::load(m.acc + (v * room + i - r) * L),
                                      i < continuing, cut);
                }
            }
        }
    }
}

}  // namespace fusedrnn::FUSEDRNN_ISA
