// What the device layer does to memory and to other threads.
#include <algorithm>
#include <cstdio>
#include <string>

#include "grid.h"
#include "include/platform/device.h"

namespace fusedrnn::cuda::emulator {

namespace {

std::string describe(const char* what, const void* p, int size) {
    char text[120];
    std::snprintf(text, sizeof text, "%s of %d bytes at %p", what, size, p);
    return text;
}

// `alignment` 0 is that of the size.
Address check_global(const char* what, const void* p, int size, Site site, int alignment = 0) {
    const auto address = reinterpret_cast<Address>(p);
    if (address % static_cast<Address>(alignment == 0 ? size : alignment) != 0)
        grid->fail("misaligned " + describe(what, p, size), site);
    if (grid->config().check_bounds && !is_allocated(address, static_cast<std::size_t>(size))) {
        grid->fail(describe(what, p, size) + " is outside of all memory of the device", site);
    }
    return address;
}

void check_shared(const char* what, const void* p, Site site) {
    const auto* byte = static_cast<const unsigned char*>(p);
    if (reinterpret_cast<Address>(p) % 16 != 0) grid->fail("misaligned " + describe(what, p, 16), site);
    if (byte < place->shared || byte + 16 > place->shared + place->shared_bytes) {
        grid->fail(describe(what, p, 16) + " is outside of the shared memory of the block", site);
    }
}

Warp& own_warp() { return self->block->warps[static_cast<std::size_t>(self->place.thread / 32)]; }

bool by_chance(int percent) { return static_cast<int>(grid->random() % 100) < percent; }

void read_own_stores(Address address, void* to, int size) {
    self->block->stores.read(address, to, size);
    own_warp().stores.read(address, to, size);
    self->stores.read(address, to, size);
}

void read_plain(Address address, void* to, int size) {
    int back = grid->memory.staleness(address, size, self->fresh, self->block->id);
    if (back > 0) {
        const bool stale = by_chance(grid->config().stale_percent);
        back = stale ? 1 + static_cast<int>(grid->random() % static_cast<std::uint64_t>(back)) : 0;
    }
    grid->memory.read(address, to, size, back);
    read_own_stores(address, to, size);
}

void read_now(Address address, void* to, int size) {
    grid->memory.read(address, to, size, 0);
    read_own_stores(address, to, size);
}

void mark_written(const char* what, void* p, int size, Site site) {
    if (!grid->memory.mark_written(reinterpret_cast<Address>(p), size)) {
        grid->fail(describe(what, p, size) + ", which load_constant reads in the same launch", site);
    }
}

// Past the store buffers, and past what they still hold of these bytes.
void write_now(Address address, const void* from, int size) {
    self->block->stores.forget(address, size);
    own_warp().stores.forget(address, size);
    self->stores.forget(address, size);
    grid->memory.write(address, from, size, self->block->id);
    grid->wake_spinners();
}

// Everything that this thread may order becomes visible to the GPU.
void release() {
    Block& block = *self->block;
    own_warp().stores.move_to(block.stores);
    self->stores.move_to(block.stores);
    if (block.stores.empty()) return;
    grid->memory.write(block.stores, block.id);
    block.stores.clear();
    grid->wake_spinners();
}

void land(PendingCopy& copy) {
    if (copy.written) return;
    if (!copy.read && copy.bytes > 0) read_plain(copy.from, copy.data, copy.bytes);
    std::copy_n(copy.data, 16, copy.to);
    copy.read = copy.written = true;
}

}  // namespace

const Where& where() { return *place; }
void* shared_memory() { return place->shared; }

void block_barrier(Site site) {
    if (!is_left_out(Operation::block_barrier, site)) grid->block_barrier(site);
}

void warp_barrier(Site site) {
    if (is_left_out(Operation::warp_barrier, site)) return;
    grid->warp_operation("warp_barrier", [](void* const(&)[32]) { order_warp(); }, nullptr, site);
}

void load_constant(void* to, const void* p, int size, Site site) {
    const Address address = check_global("load_constant", p, size, site);
    if (!grid->memory.mark_constant(address, size)) {
        grid->fail(describe("load_constant", p, size) + ", which the same launch writes", site);
    }
    grid->memory.read(address, to, size, 0);
}

void load(void* to, const void* p, int size, Site site) {
    const Address address = check_global("load", p, size, site);
    grid->may_switch();
    read_plain(address, to, size);
}

void load_relaxed(void* to, const void* p, int size, Site site) {
    const Address address = check_global("load_relaxed", p, size, site);
    grid->may_switch();
    read_now(address, to, size);
}

void store(void* p, const void* from, int size, Site site) {
    const Address address = check_global("store", p, size, site);
    mark_written("store", p, size, site);
    if (by_chance(grid->config().early_percent)) {
        write_now(address, from, size);
    } else {
        self->stores.store(address, from, size);
    }
    grid->may_switch();
}

void store_relaxed(void* p, const void* from, int size, Site site) {
    const Address address = check_global("store_relaxed", p, size, site);
    mark_written("store_relaxed", p, size, site);
    write_now(address, from, size);
    grid->may_switch();
}

unsigned load_acquire(const unsigned* p, Site site) {
    const Address address = check_global("load_acquire", p, 4, site);
    const bool left_out = is_left_out(Operation::load_acquire, site);
    grid->may_switch();
    unsigned v;
    read_now(address, &v, 4);
    if (!left_out) self->fresh = grid->memory.time;
    return v;
}

void store_release(unsigned* p, unsigned v, Site site) {
    const Address address = check_global("store_release", p, 4, site);
    mark_written("store_release", p, 4, site);
    if (!is_left_out(Operation::store_release, site)) release();
    write_now(address, &v, 4);
    grid->may_switch();
}

void add_release(unsigned* p, unsigned v, Site site) {
    const Address address = check_global("add_release", p, 4, site);
    mark_written("add_release", p, 4, site);
    if (!is_left_out(Operation::add_release, site)) release();
    unsigned sum;
    read_now(address, &sum, 4);
    sum += v;
    write_now(address, &sum, 4);
    grid->may_switch();
}

void fence(Site site) {
    if (is_left_out(Operation::fence, site)) return;
    release();
    self->fresh = grid->memory.time;
    grid->may_switch();
}

void spin_pause(Site site) { grid->spin(site); }

void trap(Site site) { grid->fail("trap", site); }

void cp_async16(void* shared, const void* global, int bytes, Site site) {
    check_shared("cp_async16", shared, site);
    if (bytes < 0 || bytes > 16)
        grid->fail("cp_async16: expected 0 to 16 bytes, got " + std::to_string(bytes), site);
    PendingCopy copy{static_cast<unsigned char*>(shared), 0, bytes, self->group, false, false, {}};
    copy.from = bytes > 0 ? check_global("cp_async16", global, bytes, site, 16) : 0;
    // It may read at any time from now until the wait, and write at any time after that.
    if (grid->random() % 4 == 0) {
        land(copy);
    } else if (grid->random() % 2 == 0 && bytes > 0) {
        read_plain(copy.from, copy.data, bytes);
        copy.read = true;
    }
    self->copies.push_back(copy);
}

void cp_async_commit() { ++self->group; }

void cp_async_wait(int n, Site site) {
    if (is_left_out(Operation::cp_async_wait, site)) return;
    auto& copies = self->copies;
    const int last = self->group - 1 - n;
    for (PendingCopy& copy : copies) {
        if (copy.group <= last) land(copy);
    }
    std::erase_if(copies, [=](const PendingCopy& copy) { return copy.group <= last; });
    grid->may_switch();
}

}  // namespace fusedrnn::cuda::emulator
