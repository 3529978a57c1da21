// Rows of a table by index, and their gradient.
#pragma once

#include "layers/parallel.h"
#include "layers/row.h"

namespace fusedrnn::FUSEDRNN_ISA {

template <class T>
void embedding_forward(std::int64_t n, std::int64_t dim, const std::int64_t* indices, const T* weight, T* y,
                       Team& team) {
    interruptible_blocks(team, n, rows_per_block(dim), [&](std::int64_t begin, std::int64_t end) {
        for (std::int64_t i = begin; i < end; ++i) {
            const T* row = weight + indices[i] * dim;
            T* out = y + i * dim;
            row_vectors<T>(dim,
                           [&](std::int64_t d, int m) { store_up_to(load_up_to(row + d, m), out + d, m); });
        }
    });
}

// Each member takes some columns of all rows: an index that occurs twice is added twice, in order, by one member.
template <class T>
void embedding_backward(std::int64_t n, std::int64_t dim, const std::int64_t* indices, const T* dy,
                        T* dweight, Team& team) {
    constexpr std::int64_t kColumns = 64 / sizeof(T);  // a cache line
    parallel_ranges(team, dim, kColumns, [&](int, std::int64_t begin, std::int64_t end) {
        for (std::int64_t i = 0; i < n; ++i) {
            const T* row = dy + i * dim + begin;
            T* sum = dweight + indices[i] * dim + begin;
            row_vectors<T>(end - begin, [&](std::int64_t d, int m) {
                store_up_to(load_up_to(sum + d, m) + load_up_to(row + d, m), sum + d, m);
            });
        }
    });
}

}  // namespace fusedrnn::FUSEDRNN_ISA
