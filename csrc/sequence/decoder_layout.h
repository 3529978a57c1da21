// What a decoder keeps where: weights in panels, the memory with its keys, and the rows of its steps; and which positions are
// whose.
#pragma once

#include "cpu/gemm.h"
#include "cpu/pack.h"
#include "cpu/steps.h"
#include "sequence/decoder_cell.h"
#include "sequence/decoder_table.h"
#include "sequence/factored_score.h"
#include "sequence/history.h"

namespace fusedrnn::FUSEDRNN_ISA {

inline constexpr std::int64_t kDecoderBlockBytes = 192 * 1024;  // of the input's part of the gates
inline constexpr std::int64_t kDecoderRows = 32;  // of the batch that go through the steps together, and
inline constexpr std::int64_t kOneStepRows =
    256;  // where there is one step, whose weights then come from afar once
inline constexpr std::int64_t kCellPanels =
    128;  // rows times panels whose gates stay near between product and cell

// The sizes of a decoder in whole vectors, and its cell.
template <class T>
struct DecoderShape {
    static constexpr std::int64_t L = Vec<T>::kLanes;
    DecoderSizes d;
    const DecoderCell<T>& cell;
    int G, S;
    std::int64_t hp, ap, mp, sp, F, fp, gates, panels, together, block;

    explicit DecoderShape(const DecoderSizes& sizes)
        : d(sizes),
          cell(decoder_cell<T>(sizes.cell)),
          G(cell.gates),
          S(cell.states),
          hp(padded<T>(d.H)),
          ap(padded<T>(d.A)),
          mp(padded<T>(d.M)),
          sp(padded<T>(d.S)),
          F(sizes.fed()),
          fp(padded<T>(F)),
          gates(hp * G),
          panels(panels_of<T>(d.H)),
          together(sizes.T == 1 ? kOneStepRows : kDecoderRows),
          block(larger(together, kDecoderBlockBytes / (gates * static_cast<std::int64_t>(sizeof(T))))) {}
    // Of a row of a step, in multiply-adds.
    std::int64_t attention_work() const {
        return d.S * ((16 + d.features()) * key_columns() + 24 * d.windows() + mp + d.filters * d.width);
    }
    bool additive() const { return d.score == Score::kAdditive; }
    bool factored() const { return additive() && d.features() == 0; }
    bool windowed() const { return d.score == Score::kWindow; }
    bool multiplies() const { return !additive() && !windowed(); }
    bool projects_query() const { return additive() || windowed(); }
    bool projects_memory() const { return additive() || d.score == Score::kGeneral; }
    std::int64_t key_columns() const { return windowed() ? 0 : ap; }
};

// Weights in panels for forward: those of gates as [panel][G][K][L], so that a range of panels is one of the rows of a product.
template <class T>
struct DecoderWeights {
    T *x, *fed, *h, *b_x, *b_h;
    T *query, *b_query, *memory, *b_memory, *energy;
    T *output_context, *output_h;
    T* features;  // [A/L][feature][L]

    DecoderWeights(const DecoderShape<T>& s, void* block) {
        constexpr std::int64_t L = Vec<T>::kLanes;
        const auto room = [](std::int64_t columns, std::int64_t k) {
            return columns * panel_depth<T>(k) + L;
        };
        Arena arena(block);
        x = arena.take<T>(room(s.gates, s.d.I));
        fed = arena.take<T>(room(s.gates, s.F));
        h = arena.take<T>(room(s.gates, s.d.H));
        b_x = arena.take<T>(s.gates);
        b_h = arena.take<T>(s.gates);
        query = arena.take<T>(s.projects_query() ? room(s.ap, s.d.H) : 0);
        b_query = arena.take<T>(s.windowed() ? s.ap : 0);
        memory = arena.take<T>(s.projects_memory() ? room(s.ap, s.d.M) : 0);
        b_memory = arena.take<T>(s.ap);
        energy = arena.take<T>(s.ap);
        output_context = arena.take<T>(s.d.current ? room(s.hp, s.d.M) : 0);
        output_h = arena.take<T>(s.d.current ? room(s.hp, s.d.H) : 0);
        features = arena.take<T>(s.ap * s.d.features());
        bytes = arena.used();
    }
    std::int64_t bytes;
};

// The memory, its rows padded, and the keys in panels, [A/L][N][L]; their factors (factored_score.h) lie as they do.
template <class T>
struct DecoderKeys {
    T *memory, *keys, *factors;
    std::int64_t bytes;
    DecoderKeys(const DecoderShape<T>& s, void* block) {
        Arena arena(block);
        memory = arena.take<T>(s.d.memory_rows * s.mp);
        keys = arena.take<T>(s.d.memory_rows * s.key_columns());
        factors = arena.take<T>(s.factored() ? s.d.memory_rows * s.key_columns() : 0);
        bytes = arena.used();
    }
};

// What each token and each row of the memory add to the gates. A search looks at one memory from many rows and steps, and
// alpha (W m) costs less than W (alpha m); where a step has few rows it reads fewer bytes.
template <class T>
struct DecoderProjections {
    T *inputs, *memory;  // (V, gates), [gates/L][N][L]
    std::int64_t bytes;
    DecoderProjections(const DecoderShape<T>& s, void* block) {
        Arena arena(block);
        inputs = arena.take<T>(s.d.table * s.gates);
        memory = arena.take<T>(s.d.contexts ? s.gates * s.d.memory_rows : 0);
        bytes = arena.used();
    }
};

// What each row of a step has. A tape has those of all steps; without one there are two steps, in turns.
template <class T>
struct DecoderRows {
    T *initial, *feed, *queries, *alphas, *contexts, *hidden, *states, *outputs, *saved;
    T *attention, *covered, *features;  // before the first step, by position; of each row [feature][S]
    T *first_centres, *centres;         // before the first step, by position; of each row
    std::int64_t bytes;
    DecoderRows(const DecoderShape<T>& s, bool keeps, void* block) {
        Arena arena(block);
        initial = arena.take<T>(s.S * s.d.B * s.hp);
        feed = arena.take<T>(s.d.feeds ? s.d.B * s.hp : 0);
        queries = arena.take<T>(s.projects_query() ? s.d.rows * s.ap : 0);
        alphas = arena.take<T>(s.d.rows * s.sp);
        contexts = arena.take<T>(s.d.rows * s.mp);
        hidden = arena.take<T>(s.d.rows * s.hp);
        states = arena.take<T>(s.d.rows * (s.S - 1) * s.hp);
        outputs = arena.take<T>(s.d.current ? s.d.rows * s.hp : 0);
        saved = arena.take<T>(keeps ? s.d.rows * s.hp * s.cell.saved : 0);
        const std::int64_t positions = s.d.features() > 0 ? s.d.B : 0;
        attention = arena.take<T>(positions * s.sp);
        covered = arena.take<T>(positions * s.sp);
        features = arena.take<T>(s.d.rows * s.d.features() * s.sp);
        first_centres = arena.take<T>(s.d.B * s.d.windows());
        centres = arena.take<T>(s.d.rows * s.d.windows());
        bytes = arena.used();
    }
};

// Where rows of steps find what they have: of forward, and of backward on a tape.
template <class T>
class DecoderPlaces {
  protected:
    DecoderPlaces(const DecoderArgs<T>& args, void* tape)
        : f_(args), s_(args.sizes), keys_(s_, args.keys), rows_(s_, args.keeps, tape) {}

    std::int64_t row_of(std::int64_t t, std::int64_t position) const {
        return f_.keeps ? f_.schedule.offset[t] + position : (t & 1) * s_.d.B + position;
    }
    std::int64_t batch_row(std::int64_t position) const { return f_.schedule.order[position]; }
    // The row of the states before the first step that a position goes on from.
    std::int64_t state_row(std::int64_t position) const {
        const std::int64_t b = batch_row(position);
        return f_.places == nullptr ? b : f_.places[b];
    }
    // The row of the step before t that a position goes on from.
    std::int64_t row_before(std::int64_t t, std::int64_t position) const {
        return row_of(t - 1, f_.parents == nullptr ? position : f_.parents[position]);
    }
    // A memory of no rows begins where the next one does.
    bool same_memory(std::int64_t a, std::int64_t b) const {
        return f_.memory_first[a] == f_.memory_first[b] && f_.memory_lengths[a] == f_.memory_lengths[b];
    }

    // Of the positions from `first` on those that lead, a position's source being which of them has its state and memory.
    std::int64_t find_leaders(std::int64_t t, std::int64_t first, std::int64_t n, std::int64_t* leaders,
                              std::int64_t* sources) const {
        if (f_.places == nullptr || !s_.d.contexts || s_.windowed()) {
            for (std::int64_t i = 0; i < n; ++i) leaders[i] = sources[i] = i;
            return n;
        }
        const auto origin = [&](std::int64_t position) {
            return t == 0 ? state_row(position) : row_before(t, position);
        };
        std::int64_t leading = 0;
        for (std::int64_t i = 0; i < n; ++i) {
            // Those that look at the same memory follow one another.
            std::int64_t source = leading;
            for (std::int64_t k = leading - 1; k >= 0; --k) {
                if (!same_memory(first + leaders[k], first + i)) break;
                if (origin(first + leaders[k]) == origin(first + i)) source = k;
            }
            if (source == leading) leaders[leading++] = i;
            sources[i] = source;
        }
        return leading;
    }

    // Of an array (T, B, width) of the caller's.
    template <class U>
    U* step_row(U* all, std::int64_t t, std::int64_t position, std::int64_t width) const {
        return all + (t * s_.d.B + batch_row(position)) * width;
    }
    const T* state_before(int k, std::int64_t t, std::int64_t position) const {
        if (t == 0) return rows_.initial + (k * s_.d.B + position) * s_.hp;
        return state_after(k, row_before(t, position));
    }
    T* state_after(int k, std::int64_t row) const {
        return k == 0 ? rows_.hidden + row * s_.hp : rows_.states + (row * (s_.S - 1) + k - 1) * s_.hp;
    }
    const T* output_before(std::int64_t t, std::int64_t position) const {
        return t == 0 ? rows_.feed + position * s_.hp : rows_.outputs + row_before(t, position) * s_.hp;
    }
    const T* fed_to(std::int64_t t, std::int64_t position) const {
        return s_.d.current ? output_before(t, position) : rows_.contexts + row_of(t, position) * s_.mp;
    }
    const T* query_state(std::int64_t t, std::int64_t position) const {
        return s_.d.current ? state_after(0, row_of(t, position)) : state_before(0, t, position);
    }
    const T* query_of(std::int64_t t, std::int64_t position) const {
        return s_.projects_query() ? rows_.queries + row_of(t, position) * s_.ap : query_state(t, position);
    }
    const T* attention_before(std::int64_t t, std::int64_t position) const {
        return (t == 0 ? rows_.attention + position * s_.sp : rows_.alphas + row_of(t - 1, position) * s_.sp);
    }
    const T* centres_before(std::int64_t t, std::int64_t position) const {
        return t == 0 ? rows_.first_centres + position * s_.d.windows() : centres_of(row_of(t - 1, position));
    }
    T* centres_of(std::int64_t row) const { return rows_.centres + row * s_.d.windows(); }
    T* features_of(std::int64_t row) const { return rows_.features + row * s_.d.features() * s_.sp; }
    const T* covered_before(std::int64_t t, std::int64_t position) const {
        if (t == 0 || !s_.d.coverage) return rows_.covered + position * s_.sp;
        return features_of(row_of(t - 1, position)) + s_.d.filters * s_.sp;
    }
    Features<T> row_features(const T* weights, std::int64_t row) const {
        return {weights, features_of(row), s_.d.features(), s_.sp};
    }
    // Of the keys, or of their gradients.
    template <class U>
    U* keys_of(U* keys, std::int64_t position) const {
        return keys + f_.memory_first[position] * s_.L;
    }
    const T* memory_of(std::int64_t position) const {
        return keys_.memory + f_.memory_first[position] * s_.mp;
    }

    const DecoderArgs<T>& f_;
    const DecoderShape<T> s_;
    const DecoderKeys<T> keys_;
    const DecoderRows<T> rows_;
};

// out = init + (rows of A) B for all columns, row-major: out + r * out_row. `init` null, a bias, or `out` itself.
template <class T>
FUSEDRNN_INLINE void row_major_product(GemmArgs<T> args, const T* b, std::int64_t columns, const T* init,
                                       std::int64_t init_row, T* out, std::int64_t out_row) {
    constexpr std::int64_t L = Vec<T>::kLanes;
    take_panels(args, b, {0, panels_of<T>(columns)}, columns);
    args.init = init;
    args.init_panel = L;
    args.init_row = init_row;
    args.out = out;
    args.out_panel = L;
    args.out_row = out_row;
    gemm<T, 1>(args);
}

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
