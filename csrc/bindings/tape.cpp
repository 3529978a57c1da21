#include "bindings/tape.h"

#include <atomic>
#include <cstring>
#include <stdexcept>
#include <string>

namespace fusedrnn {
namespace {

std::atomic<bool> detecting{false};

struct Watched {
    std::string name;
    const Array& array;
};

std::vector<Watched> watched(const LayerTape& tape) {
    const CallArrays& arrays = tape.arrays;
    std::vector<Watched> all{
        {"x", arrays.x}, {"y", arrays.y}, {"resets", arrays.resets}, {"tape_out", tape.memory}};
    for (int k = 0; k < kMaxStates; ++k) {
        all.push_back({"state[" + std::to_string(k) + "]", arrays.initial[k]});
        all.push_back({"reset_state[" + std::to_string(k) + "]", arrays.reset[k]});
    }
    return all;
}

// Of an array with unit stride in its last axis, and 3 axes at most.
Digest digest_of(const Array& a) {
    Digest digest{};
    if (a.size() == 0) return digest;
    const std::int64_t item = a.itemsize(), columns = a.size(a.ndim() - 1) * item;
    const std::int64_t rows = a.ndim() < 2 ? 1 : a.size(a.ndim() - 2), blocks = a.ndim() < 3 ? 1 : a.size(0);
    for (std::int64_t i = 0; i < blocks; ++i) {
        for (std::int64_t j = 0; j < rows; ++j) {
            const std::int64_t offset = (a.ndim() < 3 ? 0 : i * a.stride(0)) +  //
                                        (a.ndim() < 2 ? 0 : j * a.stride(a.ndim() - 2));
            kernel_table<float>().fingerprint(a.data<char>() + offset * item, columns, digest);
        }
    }
    return digest;
}

}  // namespace

void set_detect_changes(bool enabled) { detecting.store(enabled, std::memory_order_relaxed); }

void LayerTape::remember() {
    if (!detecting.load(std::memory_order_relaxed)) return;
    for (const Watched& w : watched(*this)) digests_.push_back(digest_of(w.array));
}

void LayerTape::check_unchanged() const {
    if (digests_.empty()) return;
    std::size_t i = 0;
    for (const Watched& w : watched(*this)) {
        const Digest now = digest_of(w.array);
        if (std::memcmp(&now, &digests_[i++], sizeof now) == 0) continue;
        throw std::runtime_error("tape: expected " + w.name +
                                 " as it was after forward, got changed values; do not write to it before "
                                 "backward, or give forward a copy");
    }
}

}  // namespace fusedrnn
