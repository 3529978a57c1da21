// What moves rows about: between sequences and compact matrices, into final states, transposed, summed.
#pragma once

#include "kernels/arguments.h"
#include "kernels/math.h"
#include "kernels/source.h"

namespace fusedrnn::cuda {

inline constexpr int kRowsThreads = 256;  // a warp takes a row

FUSEDRNN_DEVICE std::int64_t active_at(const DeviceSchedule& s, std::int64_t t) {
    return t >= s.T ? 0 : s.active == nullptr ? s.B : load_constant(s.active + t);
}
FUSEDRNN_DEVICE std::int64_t offset_at(const DeviceSchedule& s, std::int64_t t) {
    return s.offset == nullptr ? t * s.B : load_constant(s.offset + t);
}

// Calls visit(t, position, batch row, compact index) for each row alive at this block's step.
template <class Visit>
FUSEDRNN_DEVICE void for_rows(const DeviceSchedule& schedule, std::int64_t first, Visit visit) {
    const std::int64_t t = first + block_index().x, active = active_at(schedule, t);
    const std::int64_t index = offset_at(schedule, t) - offset_at(schedule, first);
    const int warps = block_threads() / 32;
    for (std::int64_t p = block_index().y * warps + warp(); p < active; p += grid_size().y * warps) {
        visit(t, static_cast<int>(p), row_at(schedule.order, static_cast<int>(p)), index + p);
    }
}

template <class T>
FUSEDRNN_KERNEL void gather_rows(RowsArgs args) {
    for_rows(args.schedule, args.first, [&](std::int64_t t, int, std::int64_t b, std::int64_t index) {
        const T* const from =
            static_cast<const T*>(args.from.data) + t * args.from.t_stride + b * args.from.b_stride;
        T* const to = static_cast<T*>(args.compact) + index * args.n;
        for (std::int64_t i = lane(); i < args.n; i += 32) store(to + i, load_constant(from + i));
    });
}

template <class T>
FUSEDRNN_KERNEL void scatter_rows(RowsArgs args) {
    for_rows(args.schedule, args.first, [&](std::int64_t t, int, std::int64_t b, std::int64_t index) {
        T* const to = static_cast<T*>(args.to.data) + t * args.to.t_stride + b * args.to.b_stride;
        const T* const from = static_cast<const T*>(args.compact) + index * args.n;
        for (std::int64_t i = lane(); i < args.n; i += 32) {
            T value = load_constant(from + i);
            if (args.accumulate) value = narrow<T>(widen(value) + widen(load(to + i)));
            store(to + i, value);
        }
    });
}

template <class E>
FUSEDRNN_KERNEL void look_up(LookupArgs args) {
    for_rows(args.schedule, args.first, [&](std::int64_t t, int, std::int64_t b, std::int64_t row) {
        const std::int64_t v = load_constant(args.index + t * args.schedule.B + b);
        const E* const from = static_cast<const E*>(args.from) + v * args.from_stride;
        E* const to = static_cast<E*>(args.to) + row * args.n;
        for (std::int64_t i = lane(); i < args.n; i += 32) store(to + i, load_constant(from + i));
    });
}

// Past the end of a row everything is zero.
template <class T>
FUSEDRNN_KERNEL void clear_padding(RowsArgs args) {
    const std::int64_t t = args.first + block_index().x, active = active_at(args.schedule, t);
    const int warps = block_threads() / 32;
    for (std::int64_t p = block_index().y * warps + warp(); p < args.schedule.B; p += grid_size().y * warps) {
        if (p < active) continue;
        const std::int64_t b = row_at(args.schedule.order, static_cast<int>(p));
        T* const to = static_cast<T*>(args.to.data) + t * args.to.t_stride + b * args.to.b_stride;
        for (std::int64_t i = lane(); i < args.n; i += 32) store(to + i, T{});
    }
}

template <class T>
FUSEDRNN_KERNEL void gather_hidden(GatherHiddenArgs args) {
    for_rows(args.schedule, args.first, [&](std::int64_t t, int p, std::int64_t b, std::int64_t index) {
        const T* const from = hidden_before<T>(args.source, {t, active_at(args.schedule, t + 1)}, p, b);
        T* const to = static_cast<T*>(args.compact) + index * args.source.P;
        for (std::int64_t i = lane(); i < args.source.P; i += 32) {
            store(to + i, from == nullptr ? T{} : load_constant(from + i));
        }
    });
}

template <class E>
FUSEDRNN_DEVICE void copy_state(const E* from, E* to, std::int64_t n) {
    for (std::int64_t i = thread_index(); i < n; i += block_threads()) {
        store(to + i, from == nullptr ? E{} : load(from + i));
    }
}

template <class T, class C>
FUSEDRNN_KERNEL void final_state(FinalStateArgs args) {
    const int p = block_index().x;
    const DeviceSchedule& s = args.schedule;
    const std::int64_t b = row_at(s.order, p),
                       length = s.length == nullptr ? s.T : load_constant(s.length + p);
    if (args.only_empty && length > 0) return;
    const std::int64_t last = args.reverse ? 0 : length - 1;
    if (args.final[0] != nullptr) {
        const T* from = row_or_null<T>(args.initial[0], b * args.P);
        if (length > 0) {
            from = static_cast<const T*>(args.y.data) + last * args.y.t_stride + b * args.y.b_stride;
        }
        copy_state(from, static_cast<T*>(args.final[0]) + b * args.P, args.P);
    }
    for (int k = 1; k <= args.beyond; ++k) {
        if (args.final[k] == nullptr) continue;
        const C* from = row_or_null<C>(args.initial[k], b * args.H);
        if (length > 0) {
            const std::int64_t row = args.states_by_index ? offset_at(s, last) + p : p;
            from = static_cast<const C*>(args.states) + (row * args.beyond + k - 1) * args.H;
        }
        copy_state(from, static_cast<C*>(args.final[k]) + b * args.H, args.H);
    }
}

// Blocks (tile of 32 rows, tile of 32 columns) of 256 threads.
template <class T>
FUSEDRNN_KERNEL void transpose(TransposeArgs args) {
    constexpr int kLine = 33;
    T* const tile = shared_memory<T>();
    const std::int64_t m = std::int64_t{block_index().x} * 32, n = std::int64_t{block_index().y} * 32;
    for (int i = warp(); i < 32; i += block_threads() / 32) {
        if (m + i >= args.m || n + lane() >= args.n) continue;
        tile[i * kLine + lane()] =
            load_constant(static_cast<const T*>(args.from) + (m + i) * args.n + n + lane());
    }
    block_barrier();
    for (int i = warp(); i < 32; i += block_threads() / 32) {
        if (n + i >= args.n || m + lane() >= args.m) continue;
        store(static_cast<T*>(args.to) + (n + i) * args.m + m + lane(), tile[lane() * kLine + i]);
    }
}
template <class T>
inline constexpr int transpose_shared_bytes() {
    return 32 * 33 * static_cast<int>(sizeof(T));
}

// The sums of all warps, lane by lane and in their order; of the first warp alone.
template <class C, int n>
FUSEDRNN_DEVICE void add_warps(C (&sum)[n]) {
    C* const sums = shared_memory<C>();
    FUSEDRNN_UNROLL
    for (int e = 0; e < n; ++e) sums[e * block_threads() + thread_index()] = sum[e];
    block_barrier();
    for (int i = thread_index() + 32; warp() == 0 && i < block_threads(); i += 32) {
        FUSEDRNN_UNROLL
        for (int e = 0; e < n; ++e) sum[e] += sums[e * block_threads() + i];
    }
}

// Of a slice's rows, which the warps take turns at, the elements from n on.
template <bool kVector, class T, class C>
FUSEDRNN_DEVICE void add_pieces(const ColumnSumsArgs& args, int n, C (&sum)[kPiece<T>]) {
    const std::int64_t first = block_index().y * args.slice;
    const std::int64_t last = first + args.slice < args.m ? first + args.slice : args.m;
    const int warps = block_threads() / 32, columns = static_cast<int>(args.n);
    FUSEDRNN_UNROLL_FEW
    for (std::int64_t m = first + warp(); m < last; m += warps) {
        const T* const row = static_cast<const T*>(args.a) + m * args.stride;
        const Piece<T> piece = load_piece<kVector>(row, n, columns);
        FUSEDRNN_UNROLL
        for (int e = 0; e < kPiece<T>; ++e) sum[e] += widen(piece.element[e]);
    }
}

// Blocks (tile of 32 pieces of columns, slice); the sums of the warps are added in order.
template <class T, class C>
FUSEDRNN_KERNEL void column_sums(ColumnSumsArgs args) {
    const std::int64_t n = (std::int64_t{block_index().x} * 32 + lane()) * kPiece<T>;
    C sum[kPiece<T>] = {};
    if (n < args.n && args.vector) add_pieces<true, T>(args, static_cast<int>(n), sum);
    if (n < args.n && !args.vector) add_pieces<false, T>(args, static_cast<int>(n), sum);
    add_warps(sum);
    if (warp() != 0) return;
    FUSEDRNN_UNROLL
    for (int e = 0; e < kPiece<T>; ++e) {
        if (n + e < args.n) store(static_cast<C*>(args.partial) + block_index().y * args.n + n + e, sum[e]);
    }
}

// Likewise, the warps taking turns at the inputs.
template <class T, class C>
FUSEDRNN_KERNEL void sum_lookups(SumLookupsArgs args) {
    const std::int64_t v = block_index().x, n = std::int64_t{block_index().y} * 32 + lane();
    const std::int64_t last = load_constant(args.first + v + 1);
    C sum[1] = {};
    for (std::int64_t i = load_constant(args.first + v) + warp(); n < args.n && i < last;
         i += block_threads() / 32) {
        const std::int64_t row = load_constant(args.inputs + i);
        sum[0] += widen(load_constant(static_cast<const T*>(args.from) + row * args.n + n));
    }
    add_warps(sum);
    if (warp() != 0 || n >= args.n) return;
    T* const to = static_cast<T*>(args.to) + v * args.to_stride + n;
    if (args.accumulate) sum[0] += widen(load(to));
    store(to, narrow<T>(sum[0]));
}

}  // namespace fusedrnn::cuda
