// Launches: what is asked of them, and whether it can be.
#include <algorithm>
#include <cstdio>
#include <mutex>

#include "grid.h"
#include "runtime.h"

namespace fusedrnn::cuda::emulator {

namespace {

constexpr int kErrorLaunchFailure = 719;  // CUDA's cudaErrorLaunchFailure

std::mutex launch_mutex;
Config current_config;
std::uint64_t launches = 0;
std::vector<CallSite> seen_sites;
std::vector<std::unique_ptr<Block>> blocks;  // kept from launch to launch: stacks are dear

bool ends_with(const std::string& name, const std::string& end) {
    return name.size() >= end.size() && name.compare(name.size() - end.size(), end.size(), end) == 0;
}

}  // namespace

std::string text(Int3 v) {
    char text[48];
    std::snprintf(text, sizeof text, "(%d, %d, %d)", v.x, v.y, v.z);
    return text;
}

void refuse(const std::string& what) { throw Error(kErrorLaunchFailure, "emulator", what, "launch"); }

const char* name(Operation operation) {
    constexpr const char* names[] = {"block_barrier", "warp_barrier",    "load_acquire",
                                     "store_release", "add_release",     "fence",
                                     "cp_async_wait", "cluster_barrier", "mbarrier_try_wait"};
    return names[static_cast<int>(operation)];
}

void set_config(const Config& config) {
    const std::lock_guard lock(launch_mutex);
    current_config = config;
    launches = 0;
    seen_sites.clear();
}

const Config& config() { return current_config; }

const std::vector<CallSite>& call_sites() { return seen_sites; }

bool is_left_out(Operation operation, Site site) {
    const bool seen = std::any_of(seen_sites.begin(), seen_sites.end(), [&](const CallSite& other) {
        return other.operation == operation && other.line == site.line && other.file == site.file;
    });
    if (!seen) seen_sites.push_back({operation, site.file, site.line});
    const int call = self->calls[static_cast<int>(operation)]++;
    for (const Omission& omission : grid->config().omit) {
        if (omission.operation == operation && (omission.line == 0 || omission.line == site.line) &&
            (omission.nth < 0 || omission.nth == call) && ends_with(site.file, omission.file)) {
            return true;
        }
    }
    return false;
}

int resident_blocks(const Shape& shape) {
    return current_config.resident_blocks / shape.cluster * shape.cluster;
}

namespace {

void check_shape(const Shape& shape, std::size_t argument_bytes) {
    if (shape.grid_x < 1 || shape.grid_y < 1 || shape.grid_z < 1 || shape.grid_y > 65535 ||
        shape.grid_z > 65535) {
        refuse("grid: expected 1 to 65535, got " + text({shape.grid_x, shape.grid_y, shape.grid_z}));
    }
    if (shape.block < 32 || shape.block > 1024 || shape.block % 32 != 0) {
        refuse("block: expected a multiple of 32 up to 1024, got " + std::to_string(shape.block));
    }
    const int most_shared = current_device().shared_bytes;
    if (shape.shared_bytes < 0 || shape.shared_bytes > most_shared) {
        refuse("shared_bytes: expected up to " + std::to_string(most_shared) + ", got " +
               std::to_string(shape.shared_bytes));
    }
    if (argument_bytes > 4096) {
        refuse("arguments: expected up to 4096 bytes, got " + std::to_string(argument_bytes));
    }
    if (shape.cluster < 1 || shape.cluster > 16 || shape.grid_x % shape.cluster != 0) {
        refuse("cluster: expected 1 to 16 blocks and a divisor of the " + std::to_string(shape.grid_x) +
               " blocks along x, got " + std::to_string(shape.cluster));
    }
    if (shape.cluster > 1 && current_config.architecture < 90) {
        refuse("cluster: expected compute capability 90 or later, got " +
               std::to_string(current_config.architecture));
    }
    if (shape.cluster > current_config.resident_blocks) {
        refuse("cluster: expected up to " + std::to_string(current_config.resident_blocks) +
               " blocks at the same time, got " + std::to_string(shape.cluster));
    }
    const double count = double{1} * shape.grid_x * shape.grid_y * shape.grid_z;
    if (shape.cooperative && count > resident_blocks(shape)) {
        refuse("cooperative launch: expected up to " + std::to_string(resident_blocks(shape)) + " blocks");
    }
}

}  // namespace

void launch(const Body& body, const Shape& shape, std::size_t argument_bytes) {
    const std::lock_guard lock(launch_mutex);
    check_shape(shape, argument_bytes);
    Grid launched(body, shape, current_config, current_config.seed * 1000003 + launches++, blocks);
    grid = &launched;
    try {
        launched.run();
    } catch (...) {
        grid = nullptr;
        throw;
    }
    grid = nullptr;
}

}  // namespace fusedrnn::cuda::emulator
