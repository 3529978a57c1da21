// Packed weights of one layer and direction, shared by every call that uses them.
#pragma once

#include <algorithm>
#include <atomic>
#include <cstring>
#include <memory>
#include <mutex>
#include <utility>

#include "bindings/arrays.h"
#include "bindings/buffer.h"
#include "bindings/checks.h"
#include "bindings/fork_safe_mutex.h"
#include "cpu/kernels.h"
#include "layers/layer_table.h"

namespace fusedrnn {

// Tells whether weights are those that were packed: by a count of their changes where the caller keeps one, else by a
// digest of all that they hold.
struct Identity {
    std::int64_t version = -1;
    Digest digest{};

    bool operator==(const Identity& other) const {
        return version == other.version && std::memcmp(&digest, &other.digest, sizeof digest) == 0;
    }
};

// Immutable once packed: tapes and concurrent calls hold it by shared_ptr while a newer one takes its place.
template <class T>
struct WeightBlock {
    AlignedBuffer memory;
    Packed<T> packed;
    Identity identity;
    Dims dims;
    const RecurrentCell* cell;
    bool backward;
    std::shared_ptr<const WeightBlock> others;  // has all weights but W_hh, where `memory` has W_hh alone
};

// Called without the GIL, by the first member of the team; unfinished once the team is cancelled.
template <class T>
std::shared_ptr<const WeightBlock<T>> pack_weights(const RecurrentCell& cell, const Dims& dims,
                                                   const Params<const T>& params, bool backward,
                                                   const Identity& identity, Team& team) {
    const RecurrentKernels<T>& kernels = cell.kernels<T>();
    auto block = std::make_shared<WeightBlock<T>>();
    block->memory = AlignedBuffer(kernels.packed_bytes(cell, dims, backward));
    kernels.pack(cell, dims, params, backward, block->memory.data(), block->packed, team);
    block->identity = identity;
    block->dims = dims;
    block->cell = &cell;
    block->backward = backward;
    return block;
}

// The mask of dropout on W_hh in one call.
struct Drop {
    double p;
    std::uint64_t seed, offset;
};

// `all`, but W_hh is the one given, with that mask. Called as pack_weights.
template <class T>
std::shared_ptr<const WeightBlock<T>> drop_hidden(std::shared_ptr<const WeightBlock<T>> all, const T* w_hh,
                                                  const Drop& drop, bool backward, Team& team) {
    const RecurrentCell& cell = *all->cell;
    const RecurrentKernels<T>& kernels = cell.kernels<T>();
    const std::int64_t size = cell.gates * all->dims.H * all->dims.P;
    const AlignedBuffer dropped(size * static_cast<std::int64_t>(sizeof(T)));
    layer_table<T>().weight_dropout(size, w_hh, dropped.as<T>(), drop.p, drop.seed, drop.offset, team);
    auto block = std::make_shared<WeightBlock<T>>();
    block->memory = AlignedBuffer(kernels.hidden_bytes(cell, all->dims, backward));
    block->packed = all->packed;
    kernels.pack_hidden(cell, all->dims, dropped.as<T>(), backward, block->memory.data(), block->packed,
                        team);
    block->dims = all->dims;
    block->cell = &cell;
    block->backward = backward;
    block->others = std::move(all);
    return block;
}

// Calls f(pointer, number of elements) for each parameter that is there; the pointer may be replaced.
template <class T, class F>
void for_each_parameter(const RecurrentCell& cell, const Dims& d, Params<const T>& params, F&& f) {
    for (int i = 0; i < cell.parameter_count; ++i) {
        if (params.of[i] != nullptr) f(params.of[i], elements_of(cell.parameters[i], d));
    }
}

// Calls f(first element, number of elements) for parts of n elements, with a look at the team between them.
template <class F>
void for_each_part(std::int64_t n, Team& team, F&& f) {
    constexpr std::int64_t kPart = 1 << 20;
    for (std::int64_t i = 0; i < n && !team.cancelled(0, kPart); i += kPart) f(i, std::min(kPart, n - i));
}

template <class T>
Digest digest_of(const RecurrentCell& cell, const Dims& d, Params<const T> params, Team& team) {
    Digest digest{};
    for_each_parameter<T>(cell, d, params, [&](const T* p, std::int64_t n) {
        for_each_part(n, team, [&](std::int64_t i, std::int64_t count) {
            kernel_table<T>().fingerprint(p + i, count * static_cast<std::int64_t>(sizeof(T)), digest);
        });
    });
    return digest;
}

// Moves the pointers to a copy, which is returned.
template <class T>
AlignedBuffer copy_parameters(const RecurrentCell& cell, const Dims& d, Params<const T>& params, Team& team) {
    std::int64_t bytes = 0;
    for_each_parameter<T>(cell, d, params, [&](const T*, std::int64_t n) {
        bytes += n * static_cast<std::int64_t>(sizeof(T));
    });
    AlignedBuffer copy(bytes);
    T* to = copy.as<T>();
    for_each_parameter<T>(cell, d, params, [&](const T*& p, std::int64_t n) {
        for_each_part(n, team, [&](std::int64_t i, std::int64_t count) {
            std::memcpy(to + i, p + i, static_cast<std::size_t>(count) * sizeof(T));
        });
        p = to;
        to += n;
    });
    return copy;
}

// Keeps the last packing and packs again when the weights, the sizes or the cell changed. `version` below zero: not known.
// Once the team is cancelled, what get() returns is unfinished, and is not kept.
class WeightCache {
  public:
    template <class T>
    std::shared_ptr<const WeightBlock<T>> get(const RecurrentCell& cell, const Dims& dims,
                                              const Params<const T>& given, bool backward,
                                              std::int64_t version, Team& team) {
        Identity identity =
            version >= 0 ? Identity{version, {}} : Identity{-1, digest_of<T>(cell, dims, given, team)};
        {
            const std::lock_guard<std::mutex> lock(fork_safe_mutex(this));
            const auto& held = slot<T>();
            if (held != nullptr && fits(*held, cell, dims, backward, identity)) return held;
        }
        Params<const T> params = given;
        AlignedBuffer copy;
        if (version < 0) {
            // Another thread may write to the weights between the digest and the packing. A block stays, and what it is
            // labelled with has to be the digest of what it holds: both are taken from one copy.
            copy = copy_parameters<T>(cell, dims, params, team);
            identity.digest = digest_of<T>(cell, dims, params, team);
        }
        auto fresh = pack_weights<T>(cell, dims, params, backward, identity, team);
        if (team.was_cancelled()) return fresh;
        auto replaced = fresh;  // freed without the lock
        const std::lock_guard<std::mutex> lock(fork_safe_mutex(this));
        std::swap(slot<T>(), replaced);
        return fresh;
    }
    // Whether a call of T steps should begin with the last panels: those that the call before has left in the caches.
    bool backwards(std::int64_t seq_len) {
        return (steps_.fetch_add(seq_len, std::memory_order_relaxed) & 1) != 0;
    }
    std::int64_t nbytes() const {
        const std::lock_guard<std::mutex> lock(fork_safe_mutex(this));
        return (f32_ ? f32_->memory.bytes() : 0) + (f64_ ? f64_->memory.bytes() : 0);
    }

  private:
    template <class T>
    static bool fits(const WeightBlock<T>& held, const RecurrentCell& cell, const Dims& d, bool backward,
                     const Identity& identity) {
        return held.cell == &cell && held.dims.I == d.I && held.dims.H == d.H && held.dims.P == d.P &&
               held.dims.projected == d.projected && (held.backward || !backward) &&
               held.identity == identity;
    }
    template <class T>
    std::shared_ptr<const WeightBlock<T>>& slot() {
        if constexpr (sizeof(T) == sizeof(float)) {
            return f32_;
        } else {
            return f64_;
        }
    }

    std::atomic<std::int64_t> steps_{0};
    std::shared_ptr<const WeightBlock<float>> f32_;
    std::shared_ptr<const WeightBlock<double>> f64_;
};

}  // namespace fusedrnn
