// What a decoder keeps where: weights in panels, the memory with its keys, and the rows of its steps; and which positions are
// whose.
#pragma once

#include "cpu/steps.h"
#include "sequence/decoder_table.h"

namespace fusedrnn::FUSEDRNN_ISA {

inline constexpr std::int64_t kDecoderBlockBytes = 192 * 1024;  // of the input's part of the gates

// The sizes of a decoder in whole vectors, and of its cell.
template <class Cell, class T>
struct DecoderShape {
    static constexpr std::int64_t L = Vec<T>::kLanes;
    static constexpr int G = Cell::kGates, S = Cell::kStates;
    DecoderSizes d;
    std::int64_t hp, ap, mp, sp, panels, block;

    explicit DecoderShape(const DecoderSizes& sizes)
        : d(sizes),
          hp(padded<T>(d.H)),
          ap(padded<T>(d.A)),
          mp(padded<T>(d.M)),
          sp(padded<T>(d.S)),
          panels(panels_of<T>(d.H)),
          block(larger(kRowGroup, kDecoderBlockBytes / (hp * G * static_cast<std::int64_t>(sizeof(T))))) {}
    Dims dims() const { return {d.T, d.B, d.I, d.H, d.H, 0, false}; }
};

// Weights in panels for forward.
template <class Cell, class T>
struct DecoderWeights {
    Packed<T> cell;  // of x and h
    T *context, *query, *memory, *b_memory, *energy;

    DecoderWeights(const DecoderShape<Cell, T>& s, Arena& arena) : cell{} {
        constexpr std::int64_t L = Vec<T>::kLanes;
        constexpr int G = Cell::kGates;
        cell.w_ih = arena.take<T>(s.hp * G * s.d.I + L);
        cell.w_hh = arena.take<T>(s.hp * G * s.d.H + L);
        cell.b_x = arena.take<T>(s.hp * G);
        cell.b_h = arena.take<T>(s.hp * G);
        context = arena.take<T>(s.hp * G * s.d.M + L);
        query = arena.take<T>(s.ap * s.d.H + L);
        memory = arena.take<T>(s.ap * s.d.M + L);
        b_memory = arena.take<T>(s.ap);
        energy = arena.take<T>(s.ap);
    }
};

// The memory, its rows padded, and the keys in panels.
template <class Cell, class T>
struct DecoderKeys {
    T *memory, *keys;
    DecoderKeys(const DecoderShape<Cell, T>& s, Arena& arena)
        : memory(arena.take<T>(s.d.memory_rows * s.mp)), keys(arena.take<T>(s.d.memory_rows * s.ap)) {}
};

// What each row of a step has. A tape has those of all steps; without one there are two steps, in turns.
template <class Cell, class T>
struct DecoderRows {
    T *initial, *queries, *alphas, *contexts, *hidden, *states, *saved;
    DecoderRows(const DecoderShape<Cell, T>& s, bool keeps, Arena& arena) {
        constexpr int S = Cell::kStates;
        initial = arena.take<T>(S * s.d.B * s.hp);
        queries = arena.take<T>(s.d.rows * s.ap);
        alphas = arena.take<T>(s.d.rows * s.sp);
        contexts = arena.take<T>(s.d.rows * s.mp);
        hidden = arena.take<T>(s.d.rows * s.hp);
        states = arena.take<T>(s.d.rows * (S - 1) * s.hp);
        saved = arena.take<T>(keeps ? s.d.rows * s.hp * Cell::kSaved : 0);
    }
};

// The positions of a member: about the same work for each.
inline Range decoder_positions(const Schedule& schedule, std::int64_t batch, int members, int member) {
    std::int64_t total = 0, sum = 0;
    for (std::int64_t p = 0; p < batch; ++p) total += schedule.length[p] + 1;
    Range mine{batch, batch};
    for (std::int64_t p = 0; p < batch; ++p) {
        const std::int64_t owner = sum * members / total;
        if (owner == member && mine.begin == batch) mine.begin = p;
        if (owner > member) {
            mine.end = p;
            break;
        }
        sum += schedule.length[p] + 1;
    }
    if (mine.begin > mine.end) mine.begin = mine.end;
    return mine;
}

}  // namespace fusedrnn::FUSEDRNN_ISA
