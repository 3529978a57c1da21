// The emulator's global memory: as little is seen of what other threads write as the memory model of CUDA
// allows.
//
// A plain store stays in the store buffer of its thread, or goes to memory at once; warp_barrier moves it to
// the warp's, block_barrier to the block's, and a release or a fence writes all three to memory. A plain load
// looks into the three buffers of its thread and then into memory as it was at some time since the thread's
// last acquire: a barrier hands that time on.
#pragma once

#include <cstddef>
#include <cstdint>
#include <cstring>
#include <vector>

namespace fusedrnn::cuda::emulator {

using Address = std::uintptr_t;
inline constexpr int kLine = 16;

// Line -> V, for lines of kLine bytes; entries stay in the order of their making.
template <class V>
class LineMap {
  public:
    struct Entry {
        Address line;
        std::uint32_t slot;
        V value;
    };

    bool empty() const { return entries_.empty(); }
    const std::vector<Entry>& entries() const { return entries_; }

    V* find(Address line) {
        if (entries_.empty()) return nullptr;
        const std::uint32_t at = slots_[probe(line)];
        return at == 0 ? nullptr : &entries_[at - 1].value;
    }
    V& operator[](Address line) {
        if (2 * (entries_.size() + 1) > slots_.size()) grow();
        const std::uint32_t slot = probe(line);
        if (slots_[slot] == 0) {
            entries_.push_back({line, slot, V{}});
            slots_[slot] = static_cast<std::uint32_t>(entries_.size());
        }
        return entries_[slots_[slot] - 1].value;
    }
    void clear() {
        for (const Entry& entry : entries_) slots_[entry.slot] = 0;
        entries_.clear();
    }

  private:
    std::uint32_t probe(Address line) const {
        const std::size_t mask = slots_.size() - 1;
        std::size_t slot = (line * 0x9E3779B97F4A7C15u >> 24) & mask;
        while (slots_[slot] != 0 && entries_[slots_[slot] - 1].line != line) slot = (slot + 1) & mask;
        return static_cast<std::uint32_t>(slot);
    }
    void grow() {
        slots_.assign(slots_.empty() ? 16 : 2 * slots_.size(), 0);
        for (std::size_t i = 0; i < entries_.size(); ++i) {
            entries_[i].slot = probe(entries_[i].line);
            slots_[entries_[i].slot] = static_cast<std::uint32_t>(i + 1);
        }
    }

    std::vector<Entry> entries_;
    std::vector<std::uint32_t> slots_;
};

// Those bytes of a line that are in the mask.
struct Bytes {
    unsigned char data[kLine];
    std::uint16_t mask;

    void put(const void* from, int offset, int size) {
        std::memcpy(data + offset, from, static_cast<std::size_t>(size));
        mask |= static_cast<std::uint16_t>(((1u << size) - 1u) << offset);
    }
    void put(const Bytes& other) {
        for (int i = 0; i < kLine; ++i) {
            if (other.mask >> i & 1) data[i] = other.data[i];
        }
        mask |= other.mask;
    }
    void read(void* to, int offset, int size) const {
        for (int i = 0; i < size; ++i) {
            if (mask >> (offset + i) & 1) static_cast<unsigned char*>(to)[i] = data[offset + i];
        }
    }
};

class StoreBuffer {
  public:
    bool empty() const { return lines_.empty(); }
    void store(Address address, const void* from, int size);
    void read(Address address, void* to, int size);
    void forget(Address address, int size);  // another write of the same thread overtook these bytes
    void move_to(StoreBuffer& other);
    void clear() { lines_.clear(); }
    const std::vector<LineMap<Bytes>::Entry>& entries() const { return lines_.entries(); }

  private:
    LineMap<Bytes> lines_;
};

// What one launch does to memory.
class Memory {
  public:
    void begin_launch();
    // Marks bytes as read by load_constant, as written; false where the launch does both.
    bool mark_constant(Address address, int size);
    bool mark_written(Address address, int size);

    // Memory as it was `back` writes ago, for these bytes.
    void read(Address address, void* to, int size, int back);
    // By how many writes a thread of `block` that has last acquired at time `fresh` may be behind.
    int staleness(Address address, int size, std::uint64_t fresh, int block);
    // Writes at one new time.
    void write(const StoreBuffer& buffer, int block);
    void write(Address address, const void* from, int size, int block);

    std::uint64_t time = 0;  // the number of writes until now

  private:
    struct Write {
        std::uint64_t time;
        int block;
        Bytes before;
    };
    struct Line {
        std::vector<Write> writes;  // the last few, old to new
        std::uint16_t constant, written;
    };
    void write_line(Address line, const Bytes& bytes, int block);

    LineMap<Line> lines_;
};

// Allocations that kernels may use.
void add_allocation(const void* p, std::size_t bytes);
bool remove_allocation(const void* p);
bool is_allocated(Address address, std::size_t bytes);

}  // namespace fusedrnn::cuda::emulator
