#include "memory.h"

#include <atomic>
#include <map>
#include <mutex>

namespace fusedrnn::cuda::emulator {

namespace {

constexpr std::size_t kHistory = 8;  // writes of a line that are remembered

Address line_of(Address address) { return address & ~Address{kLine - 1}; }
int offset_of(Address address) { return static_cast<int>(address & (kLine - 1)); }
std::uint16_t mask_of(Address address, int size) {
    return static_cast<std::uint16_t>(((1u << size) - 1u) << offset_of(address));
}

std::mutex allocations_mutex;
std::map<Address, std::size_t> allocations;
std::atomic<std::uint64_t> removals{0};
// The allocation found last, and the number of removals when it was.
thread_local Address last_begin = 1, last_end = 0;
thread_local std::uint64_t last_removals = 0;

}  // namespace

void StoreBuffer::store(Address address, const void* from, int size) {
    lines_[line_of(address)].put(from, offset_of(address), size);
}

void StoreBuffer::read(Address address, void* to, int size) {
    if (const Bytes* bytes = lines_.find(line_of(address))) bytes->read(to, offset_of(address), size);
}

void StoreBuffer::forget(Address address, int size) {
    if (Bytes* bytes = lines_.find(line_of(address))) {
        bytes->mask &= static_cast<std::uint16_t>(~mask_of(address, size));
    }
}

void StoreBuffer::move_to(StoreBuffer& other) {
    for (const auto& entry : lines_.entries()) other.lines_[entry.line].put(entry.value);
    lines_.clear();
}

void Memory::begin_launch() {
    lines_.clear();
    time = 0;
}

bool Memory::mark_constant(Address address, int size) {
    Line& line = lines_[line_of(address)];
    line.constant |= mask_of(address, size);
    return (line.constant & line.written) == 0;
}

bool Memory::mark_written(Address address, int size) {
    Line& line = lines_[line_of(address)];
    line.written |= mask_of(address, size);
    return (line.constant & line.written) == 0;
}

void Memory::read(Address address, void* to, int size, int back) {
    std::memcpy(to, reinterpret_cast<const void*>(address), static_cast<std::size_t>(size));
    if (back == 0) return;
    const auto& writes = lines_.find(line_of(address))->writes;
    const std::uint16_t mask = mask_of(address, size);
    for (auto write = writes.rbegin(); back > 0; ++write) {
        if ((write->before.mask & mask) == 0) continue;
        write->before.read(to, offset_of(address), size);
        --back;
    }
}

int Memory::staleness(Address address, int size, std::uint64_t fresh, int block) {
    const Line* line = lines_.find(line_of(address));
    if (line == nullptr) return 0;
    const std::uint16_t mask = mask_of(address, size);
    int count = 0;
    for (auto write = line->writes.rbegin(); write != line->writes.rend() && write->time > fresh; ++write) {
        if ((write->before.mask & mask) == 0) continue;
        if (write->block == block) break;  // nobody reads what was there before a write of its own
        ++count;
    }
    return count;
}

void Memory::write_line(Address line, const Bytes& bytes, int block) {
    if (bytes.mask == 0) return;
    auto* memory = reinterpret_cast<unsigned char*>(line);
    Write write{time, block, {}};
    for (int i = 0; i < kLine; ++i) {
        if ((bytes.mask >> i & 1) == 0) continue;
        write.before.put(memory + i, i, 1);
        memory[i] = bytes.data[i];
    }
    auto& writes = lines_[line].writes;
    if (writes.size() == kHistory) writes.erase(writes.begin());
    writes.push_back(write);
}

void Memory::write(const StoreBuffer& buffer, int block) {
    ++time;
    for (const auto& entry : buffer.entries()) write_line(entry.line, entry.value, block);
}

void Memory::write(Address address, const void* from, int size, int block) {
    ++time;
    Bytes bytes{};
    bytes.put(from, offset_of(address), size);
    write_line(line_of(address), bytes, block);
}

void add_allocation(const void* p, std::size_t bytes) {
    const std::lock_guard lock(allocations_mutex);
    allocations[reinterpret_cast<Address>(p)] = bytes;
}

bool remove_allocation(const void* p) {
    const std::lock_guard lock(allocations_mutex);
    ++removals;
    return allocations.erase(reinterpret_cast<Address>(p)) == 1;
}

bool is_allocated(Address address, std::size_t bytes) {
    if (address >= last_begin && address + bytes <= last_end && last_removals == removals) return true;
    const std::lock_guard lock(allocations_mutex);
    auto after = allocations.upper_bound(address);
    if (after == allocations.begin()) return false;
    --after;
    if (address + bytes > after->first + after->second) return false;
    last_begin = after->first;
    last_end = after->first + after->second;
    last_removals = removals;
    return true;
}

}  // namespace fusedrnn::cuda::emulator
