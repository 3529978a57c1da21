// Which thread runs next, and who waits for whom.
#include <algorithm>
#include <cstdio>
#include <cstring>
#include <map>
#include <numeric>
#include <span>
#include <sstream>

#include "grid.h"
#include "runtime.h"

#ifdef FUSEDRNN_ASAN
#include <sanitizer/asan_interface.h>
#endif

namespace fusedrnn::cuda::emulator {

Grid* grid = nullptr;
Thread* self = nullptr;
Place* place = nullptr;

namespace {

constexpr int kRedZone = 128;
constexpr unsigned char kRedByte = 0xA5;
// Ends a thread that has failed.
struct Failure {};

std::string at(Site site) {
    const char* slash = std::strrchr(site.file, '/');
    return std::string(slash ? slash + 1 : site.file) + ":" + std::to_string(site.line);
}

bool same(Site a, Site b) {
    return a.line == b.line && (a.file == b.file || std::strcmp(a.file, b.file) == 0);
}

// Shared memory lies between two zones that nobody may touch.
void open_red_zones([[maybe_unused]] const Block& block) {
#ifdef FUSEDRNN_ASAN
    __asan_unpoison_memory_region(block.shared - kRedZone, kRedZone);
    __asan_unpoison_memory_region(block.shared + block.shared_bytes, kRedZone);
#endif
}
void close_red_zones([[maybe_unused]] const Block& block) {
#ifdef FUSEDRNN_ASAN
    __asan_poison_memory_region(block.shared - kRedZone, kRedZone);
    __asan_poison_memory_region(block.shared + block.shared_bytes, kRedZone);
#endif
}

}  // namespace

Grid::Grid(const Body& body, const Shape& shape, const Config& config, std::uint64_t seed,
           std::vector<std::unique_ptr<Block>>& blocks)
    : body_(body),
      shape_(shape),
      config_(config),
      blocks_(blocks),
      random_state_(seed * 0x9E3779B97F4A7C15u + 1) {
    constexpr std::uint64_t bursts[4] = {1, 16, 256, 4096};
    burst_ = bursts[random() % 4];
    constexpr std::uint64_t hastes[4] = {0, 1, 16, 256};
    haste_ = hastes[random() % 4];
    some_late_ = random() % 2 == 0;
    pending_.resize(static_cast<std::size_t>(shape.grid_x / shape.cluster) *
                    static_cast<std::size_t>(shape.grid_y) * static_cast<std::size_t>(shape.grid_z));
    std::iota(pending_.begin(), pending_.end(), 0);
    for (std::size_t i = pending_.size(); i > 1; --i) std::swap(pending_[i - 1], pending_[random() % i]);
    memory.begin_launch();
}

std::uint64_t Grid::random() {
    std::uint64_t z = random_state_ += 0x9E3779B97F4A7C15u;
    z = (z ^ z >> 30) * 0xBF58476D1CE4E5B9u;
    z = (z ^ z >> 27) * 0x94D049BB133111EBu;
    return z ^ z >> 31;
}

// ---- the life of blocks and threads --------------------------------------------------------------------

std::span<const std::unique_ptr<Thread>> Grid::threads_of(const Block& block) const {
    return {block.threads.data(), static_cast<std::size_t>(shape_.block)};
}

void Grid::make_shared_memory(Block& block) const {
    const auto bytes = static_cast<std::size_t>(shape_.shared_bytes);
    if (block.shared_bytes != shape_.shared_bytes) {
        block.memory.reset(new unsigned char[bytes + 2 * kRedZone + 127]);
        const Address begin =
            (reinterpret_cast<Address>(block.memory.get()) + kRedZone + 127) & ~Address{127};
        block.shared = reinterpret_cast<unsigned char*>(begin);
        block.shared_bytes = shape_.shared_bytes;
    }
    open_red_zones(block);
    std::memset(block.shared - kRedZone, kRedByte, kRedZone);
    std::memset(block.shared + bytes, kRedByte, kRedZone);
    close_red_zones(block);
    std::memset(block.shared, config_.poison ? 0xFF : 0, bytes);
}

void Grid::start(Block& block, int id) {
    block.id = id;
    const int x = block.id % shape_.grid_x, y = block.id / shape_.grid_x % shape_.grid_y;
    const int z = block.id / shape_.grid_x / shape_.grid_y;
    block.arrived = block.ended = 0;
    block.warps.assign(static_cast<std::size_t>(shape_.block / 32), Warp{});
    for (Warp& warp : block.warps) warp.late = some_late_ && random() % 4 == 0;
    block.runnable.clear();
    block.stores.clear();
    block.barriers = 0;
    block.mbarriers.clear();
    block.received.clear();
    make_shared_memory(block);
    while (static_cast<int>(block.threads.size()) < shape_.block) {
        block.threads.push_back(std::make_unique<Thread>());
    }
    for (const auto& thread : threads_of(block)) {
        const int i = static_cast<int>(&thread - block.threads.data());
        thread->place = {{i, shape_.block, {x, y, z}, {shape_.grid_x, shape_.grid_y, shape_.grid_z}},
                         block.shared,
                         shape_.shared_bytes};
        thread->block = &block;
        thread->fresh = thread->polled = 0;
        thread->stores.clear();
        thread->copies.clear();
        thread->remote_stores.clear();
        thread->waited.clear();
        thread->seen.clear();
        thread->group = 0;
        std::fill(std::begin(thread->calls), std::end(thread->calls), 0);
        thread->fiber.prepare(&Grid::thread_main, static_cast<unsigned>(i));
        make_runnable(*thread);
    }
    ++live_;
}

void Grid::thread_main() {
    try {
        grid->body_.call(grid->body_.context);
        grid->end_thread();
    } catch (const Failure&) {
        // The others are left where they are: a kernel holds nothing that must be given back.
    }
    grid->change_to(nullptr, true);
}

void Grid::end_thread() {
    Thread& thread = *self;
    Block& block = *thread.block;
    Warp& its_warp = block.warps[static_cast<std::size_t>(thread.place.thread / 32)];
    thread.wait = Wait::end;
    ++its_warp.ended;
    if (its_warp.arrived > 0) {
        fail("a lane has ended while others of its warp wait in " + std::string(its_warp.operation),
             its_warp.site);
    }
    if (++block.ended + block.arrived == shape_.block && block.arrived > 0) {
        fail("divergent barrier: threads have ended while others wait in block_barrier", block.site);
    }
    ++block.cluster->ended;
    if (block.cluster->arrived > 0) {
        fail("divergent barrier: threads have ended while others wait in cluster_barrier",
             block.cluster->site);
    }
    if (!thread.remote_stores.empty()) {
        fail("a thread has ended after a store_remote that no cluster_barrier follows",
             thread.remote_stores.back().site);
    }
    if (block.ended == shape_.block) finished_ = &block;
    // It does not come back. To say so would have AddressSanitizer clear the whole stack before each call.
    change_to(finished_ == &block ? nullptr : pick(), true);
}

void Grid::finish(Block& block) {
    open_red_zones(block);
    for (int i = 0; i < kRedZone; ++i) {
        if (block.shared[i - kRedZone] != kRedByte || block.shared[shape_.shared_bytes + i] != kRedByte) {
            refuse("block " + text(block.threads[0]->place.block) + " wrote outside of its " +
                   std::to_string(shape_.shared_bytes) + " bytes of shared memory");
        }
    }
    for (Warp& each : block.warps) each.stores.move_to(block.stores);
    for (const auto& thread : threads_of(block)) thread->stores.move_to(block.stores);
    if (!block.stores.empty()) {
        left_.emplace_back(block.id, std::move(block.stores));
        block.stores = StoreBuffer{};
    }
    check_end_of(block);
    --live_;
    --block.cluster->live;
}

void Grid::run() {
    const auto size = static_cast<std::size_t>(shape_.cluster);
    clusters_.resize(std::min(pending_.size(), static_cast<std::size_t>(config_.resident_blocks) / size));
    resident_ = clusters_.size() * size;
    while (blocks_.size() < resident_) blocks_.push_back(std::make_unique<Block>());
    for (std::size_t i = 0; i < resident_; i += size) start(i);
    while (live_ > 0) {
        Thread* next = pick();
        if (next == nullptr) {
            if (!failed_) error_ = describe_deadlock();
            failed_ = true;
        } else {
            self = next;
            place = &next->place;
            Fiber::change(main_, next->fiber);
            self = nullptr;
        }
        if (failed_) refuse(error_);
        if (finished_ != nullptr) {
            Block& block = *finished_;
            finished_ = nullptr;
            finish(block);
            if (block.cluster->live == 0 && !pending_.empty()) {
                start(static_cast<std::size_t>(block.cluster - clusters_.data()) * size);
            }
        }
    }
    for (const auto& [id, stores] : left_) memory.write(stores, id);
}

// ---- changing from thread to thread --------------------------------------------------------------------

void Grid::make_runnable(Thread& thread) {
    thread.wait = Wait::nothing;
    if (thread.block->warps[static_cast<std::size_t>(thread.place.thread / 32)].late) {
        late_.push_back(&thread);
        return;
    }
    thread.block->runnable.push_back(&thread);
    ++runnable_;
}

Thread* Grid::take_any(std::vector<Thread*>& from, std::uint64_t random) {
    const std::size_t i = random % from.size();
    Thread* const taken = from[i];
    from[i] = from.back();
    from.pop_back();
    return taken;
}

Thread* Grid::pick() {
    while (!flights_.empty() && (runnable_ == 0 || (haste_ > 0 && random() % haste_ == 0))) {
        if (!land_any()) return nullptr;
        if (runnable_ > 0) break;
    }
    if (runnable_ == 0) return late_.empty() ? nullptr : take_any(late_, random());
    if (blocks_[current_]->runnable.empty() || random() % burst_ == 0) {
        current_ = random() % resident_;
        while (blocks_[current_]->runnable.empty()) current_ = (current_ + 1) % resident_;
    }
    --runnable_;
    return take_any(blocks_[current_]->runnable, random());
}

void Grid::change_to(Thread* next, bool ends) {
    Thread* from = self;
    if (++turns_ > config_.max_turns) {
        failed_ = true;
        error_ = "gave up after " + std::to_string(config_.max_turns) + " changes of threads";
        next = nullptr;
    }
    if (next == from) return;
    if (next == nullptr) {
        Fiber::change(from->fiber, main_, ends);
    } else {
        self = next;
        place = &next->place;
        Fiber::change(from->fiber, next->fiber, ends);
    }
}

void Grid::let_others_run() {
    make_runnable(*self);
    change_to(pick());
}

void Grid::wait(Wait what, const char* name, Site site) {
    self->wait = what;
    self->waits_in = name;
    self->site = site;
    change_to(pick());
}

void Grid::fail(const std::string& what, Site site) {
    failed_ = true;
    error_ = what + "; block " + text(place->block) + ", thread " + std::to_string(place->thread) + ", at " +
             at(site);
    throw Failure{};
}

// ---- waiting -------------------------------------------------------------------------------------------

void Grid::block_barrier(Site site) {
    Block& block = *self->block;
    if (block.arrived == 0) {
        block.site = site;
    } else if (!same(site, block.site)) {
        fail("divergent barrier: other threads wait in block_barrier at " + at(block.site), site);
    }
    ++block.arrived;
    if (block.arrived + block.ended < shape_.block) {
        wait(Wait::block_barrier, "block_barrier", site);
        return;
    }
    if (block.ended > 0) fail("divergent barrier: other threads of the block have ended", site);
    release_barrier(block);
}

void Grid::release_barrier(Block& block) {
    block.arrived = 0;
    ++block.barriers;
    merge_seen(threads_of(block));
    std::uint64_t fresh = 0;
    for (const auto& thread : threads_of(block)) fresh = std::max(fresh, thread->fresh);
    for (Warp& each : block.warps) each.stores.move_to(block.stores);
    for (const auto& thread : threads_of(block)) {
        thread->stores.move_to(block.stores);
        thread->fresh = fresh;
        if (thread.get() != self) make_runnable(*thread);
    }
    let_others_run();
}

void Grid::warp_operation(const char* name, WarpFunction function, void* operands, Site site) {
    Thread& thread = *self;
    Block& block = *thread.block;
    const int first = thread.place.thread / 32 * 32;
    Warp& its_warp = block.warps[static_cast<std::size_t>(first / 32)];
    if (its_warp.ended > 0) fail(std::string(name) + ": other lanes of the warp have ended", site);
    if (its_warp.arrived == 0) {
        its_warp.function = function;
        its_warp.operation = name;
        its_warp.site = site;
    } else if (its_warp.function != function || !same(its_warp.site, site)) {
        fail("divergent warp: " + std::string(name) + ", but other lanes wait in " + its_warp.operation +
                 " at " + at(its_warp.site),
             site);
    }
    thread.operands = operands;
    if (++its_warp.arrived < 32) {
        wait(Wait::warp, name, site);
        return;
    }
    its_warp.arrived = 0;
    void* all[32];
    for (int i = 0; i < 32; ++i) all[i] = block.threads[static_cast<std::size_t>(first + i)]->operands;
    function(all);
    for (int i = 0; i < 32; ++i) {
        Thread& other = *block.threads[static_cast<std::size_t>(first + i)];
        if (&other != self) make_runnable(other);
    }
    let_others_run();
}

void Grid::spin(Site site) {
    if (self->polled != memory.time) {
        self->polled = memory.time;
        let_others_run();
        return;
    }
    spinning_.push_back(self);
    wait(Wait::spin, "spin_pause", site);
    self->polled = memory.time;
}

void Grid::wake_spinners() {
    for (Thread* thread : spinning_) make_runnable(*thread);
    spinning_.clear();
}

std::string Grid::describe_deadlock() const {
    struct Group {
        int threads = 0;
        const Thread* first = nullptr;
    };
    std::map<std::string, Group> groups;
    for (std::size_t i = 0; i < resident_; ++i) {
        for (const auto& thread : threads_of(*blocks_[i])) {
            if (thread->wait == Wait::nothing || thread->wait == Wait::end) continue;
            Group& group = groups[std::string(thread->waits_in) + " at " + at(thread->site)];
            if (group.threads++ == 0) group.first = thread.get();
        }
    }
    std::ostringstream out;
    out << "deadlock: ";
    for (const auto& [where, group] : groups) {
        out << group.threads << " thread(s) wait in " << where << ", the first of them thread "
            << group.first->place.thread << " of block " << text(group.first->place.block) << "; ";
    }
    out << describe_mbarriers() << pending_.size() * static_cast<std::size_t>(shape_.cluster)
        << " block(s) have not started (" << config_.resident_blocks << " at a time)";
    return out.str();
}

}  // namespace fusedrnn::cuda::emulator
