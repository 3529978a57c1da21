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

// The place of W_hh among the parameters, -1 for none.
inline int hidden_weight(const RecurrentCell& cell) {
    for (int i = 0; i < cell.parameter_count; ++i) {
        if (cell.parameters[i].role == Role::kHiddenWeight) return i;
    }
    return -1;
}

// Whether all that the cell has of W_hh is among the parameters.
template <class T>
bool has_hidden(const RecurrentCell& cell, const Params<const T>& params) {
    const int place = hidden_weight(cell);
    return place < 0 || params.of[place] != nullptr;
}

// Dropout on W_hh in one call.
struct Drop {
    double p;
    std::uint64_t seed, offset;
};

// Immutable once packed: tapes and concurrent calls hold it by shared_ptr while a newer one takes its place.
template <class T>
struct WeightBlock {
    AlignedBuffer memory;
    Packed<T> packed;
    Identity identity;
    Dims dims;
    const RecurrentCell* cell;
    bool backward, hidden;  // whether it has what backward reads, and W_hh
    // Where `memory` has W_hh alone, with a mask on it: the mask, its memory, and all other weights.
    HiddenMask<T> mask{};
    AlignedBuffer kept;
    std::shared_ptr<const WeightBlock> others;
};

// Called without the GIL, by the first member of the team; unfinished once the team is cancelled. Without W_hh the rest.
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
    block->hidden = has_hidden(cell, params);
    return block;
}

// `others`, and W_hh, which is the one given, with a mask. Called as pack_weights.
template <class T>
std::shared_ptr<const WeightBlock<T>> drop_hidden(std::shared_ptr<const WeightBlock<T>> others, const T* w_hh,
                                                  const Drop& drop, bool backward, Team& team) {
    const RecurrentCell& cell = *others->cell;
    const RecurrentKernels<T>& kernels = cell.kernels<T>();
    const std::int64_t size = cell.gates * others->dims.H * others->dims.P;
    auto block = std::make_shared<WeightBlock<T>>();
    block->kept = AlignedBuffer((size + 7) / 8 + kMaskRoom);
    block->mask = {block->kept.template as<std::uint8_t>(),
                   static_cast<T>(1.0 / (drop.p < 1.0 ? 1.0 - drop.p : 1.0))};
    auto* const kept = static_cast<std::uint8_t*>(block->kept.data());
    layer_table<T>().draw_mask(size, drop.p, drop.seed, drop.offset, kept, team);
    block->memory = AlignedBuffer(kernels.hidden_bytes(cell, others->dims, backward));
    block->packed = others->packed;
    kernels.pack_hidden(cell, others->dims, w_hh, block->mask, backward, block->memory.data(), block->packed,
                        team);
    block->dims = others->dims;
    block->cell = &cell;
    block->backward = backward;
    block->hidden = true;
    block->others = std::move(others);
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
            if (held != nullptr && fits(*held, cell, dims, backward, has_hidden(cell, given), identity))
                return held;
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
                     bool hidden, const Identity& identity) {
        return held.cell == &cell && held.dims.I == d.I && held.dims.H == d.H && held.dims.P == d.P &&
               held.dims.projected == d.projected && (held.backward || !backward) &&
               (held.hidden || !hidden) && held.identity == identity;
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
