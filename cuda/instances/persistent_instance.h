// The persistent kernels of one math mode, compiled and listed. Each .cu file beside this one whose name
// begins with `persistent` is one mode.
#pragma once

#include "cells/all.h"
#include "kernels/persistent_backward.h"
#include "kernels/persistent_forward.h"

namespace fusedrnn::cuda {

// Chunks of K whose weights a warp holds for each gate, at most: what leaves no kernel short of registers.
// Each takes 8 registers of a thread, twice that where weights are two numbers each.
constexpr int persistent_share(Math math, int gates) {
    if (gates == 1) return 8;
    if (math == Math::tf32x3) return 2;
    if (math == Math::ieee) return gates == 3 ? 4 : 3;
    return gates == 3 ? 6 : 4;
}

template <Math kMath>
class PersistentInstance {
    template <class Product, class Args>
    static PersistentEntry<Args> entry(const char* name, void (*kernel)(Args), int share, int depth) {
        return {{name, kernel, 0}, share, depth, kStageBytes, kSumBytes<Product>};
    }

    template <class Cell, int kForm>
    static void add_form(PersistentCell& c, const char* forward, const char* backward) {
        constexpr int G = Cell::kGates, share = persistent_share(kMath, G), cells = kPersistentCells[kForm];
        // The second cell of a thread takes the place of a chunk.
        constexpr int forward_share = G == 3 && share == 6 && cells == 2 ? 5 : share;
        c.forward[kForm] = entry<PersistentProduct<kMath, G, forward_share>>(
            forward, &persistent_forward<Cell, kMath, forward_share, cells>, forward_share, 16);
        c.backward[kForm] = entry<PersistentProduct<kMath, 1, G * share>>(
            backward, &persistent_backward<Cell, kMath, G * share, cells>, G * share, 16 * G);
    }
    template <class Cell, unsigned kFamilies>
    static void add(PersistentEntries& e, const char* name, const char* forward, const char* backward) {
        if constexpr ((kFamilies & kPersistent) != 0) {
            static_assert(kPersistentForms == 2);
            PersistentCell c{};
            c.name = name;
            add_form<Cell, 0>(c, forward, backward);
            add_form<Cell, 1>(c, forward, backward);
            e.cells.push_back(c);
        }
    }

  public:
    static PersistentEntries make() {
        PersistentEntries e{};
        e.chunk = kChunk<typename MathTraits<kMath>::T>;
#define FUSEDRNN_PERSISTENT_CELL(name, Type, driver, families) \
    add<Type, families>(e, #name, "persistent_forward " #name, "persistent_backward " #name);
        FUSEDRNN_CELLS(FUSEDRNN_PERSISTENT_CELL)
#undef FUSEDRNN_PERSISTENT_CELL
        return e;
    }
};

}  // namespace fusedrnn::cuda

// persistent_entries_<math>(), which persistent.cpp lists.
#define FUSEDRNN_PERSISTENT_INSTANCE(math)                                               \
    namespace fusedrnn::cuda {                                                           \
    const PersistentEntries& persistent_entries_##math() {                               \
        static const PersistentEntries entries = PersistentInstance<Math::math>::make(); \
        return entries;                                                                  \
    }                                                                                    \
    }
