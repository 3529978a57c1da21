// Backward of the cells that are data: where the values of their programs are, and the stages of a step.
#pragma once

#include "cpu/backward.h"

namespace fusedrnn::FUSEDRNN_ISA {

// Of a step of several stages: the sums that its programs add to.
template <class Cell, class T>
void Backward<Cell, T>::clear_units(const Part& part) {
    for (std::int64_t i = 0; i < part.rows(p_.dims.B); ++i) {
        for (std::int64_t panel = 0; panel < plan_.panels; ++panel) {
            const std::int64_t row = panel * p_.dims.B + part.position(i);
            fill_zero(plan_.dunits[0] + row * this->units * L, this->units * L);
        }
    }
}

template <class Cell, class T>
void Backward<Cell, T>::run_program_cells(const Part& part, Member& m, const Place& later, const Place& here,
                                          Range panels, std::int64_t r, std::int64_t n,
                                          std::int64_t continuing, std::int64_t acc_rows) {
    auto& tiles = m.tiles;
    const CellPrograms& at = *plan_.programs;
    const std::uint32_t reads = at.backward.reads_after;
    const PreviousStates<Cell, T> previous_states = previous();
    const std::int64_t position = part.position(r), unit = panels.begin * L, row = part.stride * L;
    const std::int64_t kept = this->kept, units = this->units, unit_rows = plan_.unit_rows(p_.dims);
    // The gradients that reach the states; those of the states beyond h are where the later step put them, if all of these
    // rows have one, no reset comes between and nothing is added.
    bool in_place = r + n <= continuing && p_.schedule.resets == nullptr;
    for (int k = 1; k < S; ++k) in_place = in_place && p_.dsteps[k].data == nullptr;
    if (in_place) {
        for (int k = 1; k < S; ++k) {
            tiles.place(at.after + k,
                        {plan_.carry + (position * S + k) * hp_ + unit, part.stride * S * hp_, L});
        }
    }
    for (std::int64_t i = r; i < r + n; ++i) {
        const std::int64_t p = part.position(i);
        const bool continues = i < continuing;
        const bool cut = continues && previous_states.is_cut(later.t, row_of(p), p);
        for (int k = 0; k < (in_place ? 1 : S); ++k) {
            if ((reads >> k & 1) == 0 && !cut) continue;
            const auto to = tiles.gathered(S + k, n);
            for (std::int64_t u = 0; u < panels.end - panels.begin; ++u) {
                const T* acc = m.acc + (u * acc_rows + i - r) * L;
                // With a projection the gradient of h is what came through it.
                const V d = k > 0               ? state_gradient(k, here, p, unit + u * L, continues, cut)
                            : p_.dims.projected ? V::load(acc)
                                                : hidden_gradient(here, p, unit + u * L, continues, cut, acc);
                d.store(to.at + (i - r) * to.row + u * to.panel);
            }
        }
    }
    for (int k = 0; k < (in_place ? 1 : S); ++k) tiles.place(at.after + k, tiles.gathered(S + k, n));
    for (int k = 0; k < S; ++k) {
        if ((at.backward.reads_before >> k & 1) == 0) continue;
        tiles.place_rows(at.before + k, m.state_rows + r * S + k, S, n, panels, p_.dims.H, k);
    }
    tiles.place(at.saved, this->kept, const_cast<T*>(saved_at(here, panels.begin, position)), L, row * kept,
                p_.schedule.active[here.t] * kept * L);
    tiles.place(at.units, this->units, p_.weights.units + panels.begin * units * L, L, 0, units * L);
    const std::int64_t gate_row = row * G, gate_panel = plan_.block_rows * G * L;
    T* const dgx = gradient(plan_.dgx, here, panels.begin, position);
    T* const dgh = gradient(plan_.dgh, here, panels.begin, position);
    tiles.place(0, G, dgx, L, gate_row, gate_panel);
    tiles.place(at.gates, G, dgh, L, gate_row, gate_panel);
    m.links.place(tiles, at);
    m.masks.place(tiles, at, at.backward.reads_masks, p_.draws, p_.dims, r, n, panels,
                  [&](std::int64_t i) { return here.t * p_.dims.B + row_of(part.position(r + i)); });
    tiles.place(at.operands, this->products,
                plan_.operands[here.buffer] + (here.row + position) * this->products * hp_ + unit, hp_,
                part.stride * this->products * hp_, L);
    tiles.place(at.before_gradients, S, plan_.carry + position * S * hp_ + unit, hp_, part.stride * S * hp_,
                L);
    tiles.place(at.unit_gradients, this->units,
                plan_.dunits[here.buffer] +
                    (panels.begin * unit_rows + (this->staged ? 0 : here.row) + position) * units * L,
                L, row * units, unit_rows * units * L);
    // The products over the gates' gradients read the lanes past the last unit, too.
    const auto clear_padding = [&] {
        const std::int64_t last = panels.end - 1, valid = p_.dims.H - last * L;
        if (valid >= L) return;
        for (std::int64_t i = 0; i < n; ++i) {
            for (int g = 0; g < G; ++g) {
                for (T* gates : {dgx, dgh}) {
                    T* to = gates + (last - panels.begin) * gate_panel + i * gate_row + g * L;
                    store_padded(V::load(to), to, valid);
                }
            }
        }
    };
    tiles.run_stages(n, panels.end - panels.begin, [&](const RowOperation& operation, Range some) {
        if (operation.kind == RowKind::kProduct) clear_padding();
        const ::fusedrnn::FUSEDRNN_ISA::Place<T> gates{dgh, gate_row, gate_panel};
        operate_backward(
            p_.dims, p_.weights, at, operation, tiles, m.links, some, gates, [&](std::int64_t i) {
                const std::int64_t before = plan_.recompute ? here.row : p_.schedule.offset[here.t];
                return (plan_.recompute
                            ? plan_.moments
                            : p_.moments)[(before + part.position(r + i)) * this->norms + operation.number];
            });
    });
    clear_padding();
}

}  // namespace fusedrnn::FUSEDRNN_ISA
