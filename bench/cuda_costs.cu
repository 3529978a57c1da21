// What exchanging h costs on this GPU, by the instructions of the kernels: printed as one JSON object.
//
//   nvcc -std=c++20 -O2 -gencode arch=compute_90a,code=sm_90a -Xcompiler=-iquote,cuda
//        -Xcompiler=-iquote,cuda/gpu/include bench/cuda_costs.cu -o cuda_costs
//
// Each time is the median of several launches with many rounds minus launches with few, over the difference:
// what is left is one round. A wait that takes longer than seconds ends the launch with an error.
#include <cooperative_groups.h>
#include <cuda_runtime.h>

#include <algorithm>
#include <chrono>
#include <cstdio>
#include <cstdlib>
#include <vector>

#include "device/device.h"

namespace {

using namespace fusedrnn::cuda;

constexpr int kThreads = 128, kWords = 64;  // a block's part of h: 16 units of 8 rows, 16 bits each
constexpr int kFewRounds = 200, kManyRounds = 2200, kSamples = 7;
constexpr int kMostPolls = 1 << 25;
constexpr int kMostBlocks = 256;

void check(cudaError_t error, const char* what) {
    if (error == cudaSuccess) return;
    std::fprintf(stderr, "cuda_costs: %s: %s\n", what, cudaGetErrorString(error));
    std::exit(1);
}

struct Bench {
    int rounds;
    unsigned* flags;       // one for each block
    unsigned* words;       // two buffers of kWords for each block
    std::uint64_t* pairs;  // the same, each word with its round
    unsigned* sink;        // keeps loads from being left out
};

__global__ void empty() {}

// (The program is compiled for devices without clusters, too, where these kernels are empty.)
// Every block of a cluster sends 16 bytes into the shared memory of every one and waits for those of all.
__global__ void cluster_exchange(Bench b) {
    if constexpr (kHasClusters) {
        __shared__ __align__(16) Vector16 received[2][16];
        __shared__ Mbarrier arrived[2];
        const int size = cluster_size(), rank = cluster_rank();
        if (thread_index() == 0) {
            mbarrier_init(&arrived[0], 1);
            mbarrier_init(&arrived[1], 1);
        }
        cluster_barrier();
        unsigned sum = 0;
        for (int round = 0; round < b.rounds; ++round) {
            const int side = round % 2;
            if (thread_index() == 0) mbarrier_arrive(&arrived[side], size * 16);
            if (thread_index() < size) {
                st_async(map_shared(&received[side][rank], thread_index()), Vector16{{sum, 1, 2, 3}},
                         map_shared(&arrived[side], thread_index()));
            }
            for (int polls = 0; !mbarrier_try_wait(&arrived[side], round / 2 % 2); ++polls) {
                if (polls == kMostPolls) trap();
            }
            sum += load_received(&received[side][thread_index() % size]).word[1];
            block_barrier();
        }
        cluster_barrier();  // nothing is sent to a block that has ended
        if (sum == 1) *b.sink = sum;
    }
}

__global__ void cluster_sync(Bench b) {
    if constexpr (kHasClusters) {
        for (int round = 0; round < b.rounds; ++round) cluster_barrier();
    }
}

// As the persistent kernels: words, a barrier, a flag; every warp waits for all flags, then reads all words.
__global__ void flag_exchange(Bench b) {
    const int blocks = grid_size().x, block = block_index().x;
    unsigned sum = 0;
    for (int round = 1; round <= b.rounds; ++round) {
        unsigned* words = b.words + round % 2 * kMostBlocks * kWords;
        if (thread_index() < kWords) store_relaxed(words + block * kWords + thread_index(), sum);
        block_barrier();
        if (thread_index() == 0) store_release(b.flags + block, static_cast<unsigned>(round));
        for (int other = lane(); other < blocks; other += 32) {
            for (int polls = 0; load_acquire(b.flags + other) < static_cast<unsigned>(round); ++polls) {
                if (polls == kMostPolls) trap();
                spin_pause();
            }
        }
        warp_barrier();
        for (int i = thread_index(); i < blocks * kWords; i += kThreads) sum += load_relaxed(words + i);
        block_barrier();
    }
    if (sum == 1) *b.sink = sum;
}

// The same without flags: each word travels with its round, and readers ask again until it is the right one.
__global__ void data_exchange(Bench b) {
    const int blocks = grid_size().x, block = block_index().x;
    unsigned sum = 0;
    for (int round = 1; round <= b.rounds; ++round) {
        std::uint64_t* pairs = b.pairs + round % 2 * kMostBlocks * kWords;
        const std::uint64_t tag = static_cast<std::uint64_t>(round) << 32;
        if (thread_index() < kWords) store_relaxed(pairs + block * kWords + thread_index(), tag | sum);
        for (int i = thread_index(); i < blocks * kWords; i += kThreads) {
            std::uint64_t pair = load_relaxed(pairs + i);
            for (int polls = 0; pair >> 32 != static_cast<unsigned>(round); ++polls) {
                if (polls == kMostPolls) trap();
                pair = load_relaxed(pairs + i);
            }
            sum += static_cast<unsigned>(pair);
        }
        block_barrier();
    }
    if (sum == 1) *b.sink = sum;
}

__global__ void grid_barrier(Bench b) {
    const auto grid = cooperative_groups::this_grid();
    for (int round = 0; round < b.rounds; ++round) grid.sync();
}

double median(std::vector<double> values) {
    std::sort(values.begin(), values.end());
    return values[values.size() / 2];
}

// A launch: so many blocks, in clusters or cooperative, with so much shared memory for each.
struct Launch {
    void (*kernel)(Bench);
    int blocks, cluster = 1;
    std::size_t shared_bytes = 0;

    void configure(cudaLaunchConfig_t& config, cudaLaunchAttribute& attribute) const {
        config = {};
        config.gridDim = dim3(static_cast<unsigned>(blocks));
        config.blockDim = dim3(kThreads);
        config.dynamicSmemBytes = shared_bytes;
        if (cluster > 1) {
            attribute.id = cudaLaunchAttributeClusterDimension;
            attribute.val.clusterDim = {static_cast<unsigned>(cluster), 1, 1};
            check(cudaFuncSetAttribute(kernel, cudaFuncAttributeNonPortableClusterSizeAllowed, 1), "cluster");
        } else {
            attribute.id = cudaLaunchAttributeCooperative;
            attribute.val.cooperative = 1;
        }
        config.attrs = &attribute;
        config.numAttrs = 1;
    }
    void run(const Bench& bench) const {
        cudaLaunchConfig_t config;
        cudaLaunchAttribute attribute{};
        configure(config, attribute);
        check(cudaMemsetAsync(bench.flags, 0, kMostBlocks * sizeof(unsigned)), "memset");
        check(cudaMemsetAsync(bench.pairs, 0, 2 * kMostBlocks * kWords * sizeof(std::uint64_t)), "memset");
        check(cudaLaunchKernelEx(&config, kernel, bench), "launch");
    }
};

double milliseconds(const Launch& launch, Bench bench, int rounds, cudaEvent_t start, cudaEvent_t stop) {
    bench.rounds = rounds;
    check(cudaEventRecord(start), "event");
    launch.run(bench);
    check(cudaEventRecord(stop), "event");
    check(cudaEventSynchronize(stop), "kernel");
    float ms = 0;
    check(cudaEventElapsedTime(&ms, start, stop), "event");
    return ms;
}

double round_us(const Launch& launch, const Bench& bench) {
    cudaEvent_t start, stop;
    check(cudaEventCreate(&start), "event");
    check(cudaEventCreate(&stop), "event");
    milliseconds(launch, bench, kFewRounds, start, stop);
    std::vector<double> times;
    for (int i = 0; i < kSamples; ++i) {
        const double few = milliseconds(launch, bench, kFewRounds, start, stop);
        times.push_back((milliseconds(launch, bench, kManyRounds, start, stop) - few) * 1e3 /
                        (kManyRounds - kFewRounds));
    }
    return median(times);
}

void print(const char* name, double value) { std::printf(",\n \"%s\": %.6g", name, value); }

void print(const char* name, int count, double value) {
    std::printf(",\n \"%s %d\": %.6g", name, count, value);
}

// How many clusters of a size run at the same time, one block to a multiprocessor.
int resident_clusters(int size, int most_shared) {
    cudaLaunchConfig_t config;
    cudaLaunchAttribute attribute{};
    check(cudaFuncSetAttribute(cluster_sync, cudaFuncAttributeMaxDynamicSharedMemorySize, most_shared),
          "smem");
    Launch{cluster_sync, size, size, static_cast<std::size_t>(most_shared)}.configure(config, attribute);
    int clusters = 0;
    const cudaError_t error = cudaOccupancyMaxActiveClusters(&clusters, cluster_sync, &config);
    cudaGetLastError();
    return error == cudaSuccess ? clusters : 0;
}

double elapsed_us(std::chrono::steady_clock::time_point start) {
    return std::chrono::duration<double, std::micro>(std::chrono::steady_clock::now() - start).count();
}

// An empty kernel: one launch after another, launch and wait, and as a node of a graph.
void print_launches() {
    constexpr int kLaunches = 2000;
    cudaStream_t stream;
    check(cudaStreamCreate(&stream), "stream");
    cudaGraph_t graph;
    cudaGraphExec_t executable;
    check(cudaStreamBeginCapture(stream, cudaStreamCaptureModeGlobal), "capture");
    for (int i = 0; i < kLaunches; ++i) empty<<<1, 32, 0, stream>>>();
    check(cudaStreamEndCapture(stream, &graph), "capture");
    check(cudaGraphInstantiate(&executable, graph, 0), "graph");
    std::vector<double> in_row, waited, in_graph;
    for (int sample = 0; sample <= kSamples; ++sample) {
        auto start = std::chrono::steady_clock::now();
        for (int i = 0; i < kLaunches; ++i) empty<<<1, 32, 0, stream>>>();
        check(cudaStreamSynchronize(stream), "launches");
        const double row_us = elapsed_us(start) / kLaunches;
        start = std::chrono::steady_clock::now();
        for (int i = 0; i < kLaunches; ++i) {
            empty<<<1, 32, 0, stream>>>();
            check(cudaStreamSynchronize(stream), "launch");
        }
        const double waited_us = elapsed_us(start) / kLaunches;
        start = std::chrono::steady_clock::now();
        check(cudaGraphLaunch(executable, stream), "graph");
        check(cudaStreamSynchronize(stream), "graph");
        const double graph_us = elapsed_us(start) / kLaunches;
        if (sample == 0) continue;  // the first time loads
        in_row.push_back(row_us), waited.push_back(waited_us), in_graph.push_back(graph_us);
    }
    print("launch us", median(in_row));
    print("launch and wait us", median(waited));
    print("kernel in a graph us", median(in_graph));
}

}  // namespace

int main() {
    std::setvbuf(stdout, nullptr, _IONBF, 0);  // an error ends the program: what is known then is out
    cudaDeviceProp device;
    check(cudaGetDeviceProperties(&device, 0), "device");
    std::printf("{\"multiprocessors\": %d", device.multiProcessorCount);
    print("compute capability", device.major * 10 + device.minor);
    print("L2 MB", device.l2CacheSize / 1048576.0);
    print_launches();

    Bench bench{};
    check(cudaMalloc(&bench.flags, kMostBlocks * sizeof(unsigned)), "memory");
    check(cudaMalloc(&bench.words, 2 * kMostBlocks * kWords * sizeof(unsigned)), "memory");
    check(cudaMalloc(&bench.pairs, 2 * kMostBlocks * kWords * sizeof(std::uint64_t)), "memory");
    check(cudaMalloc(&bench.sink, sizeof(unsigned)), "memory");
    check(cudaMemset(bench.words, 0, 2 * kMostBlocks * kWords * sizeof(unsigned)), "memory");

    const int processors = std::min(device.multiProcessorCount, kMostBlocks);
    for (const int blocks : {2, 8, 16, 32, 64, processors}) {
        if (blocks > processors) continue;
        print("L2 exchange by flags us, blocks", blocks, round_us({flag_exchange, blocks}, bench));
        print("L2 exchange by data us, blocks", blocks, round_us({data_exchange, blocks}, bench));
    }
    print("grid barrier us", round_us({grid_barrier, processors}, bench));
    if (device.major >= 9) {
        const int most_shared = static_cast<int>(device.sharedMemPerBlockOptin);
        for (const int size : {2, 4, 8, 16}) {
            print("clusters at once, blocks", size, resident_clusters(size, most_shared));
            print("DSMEM exchange us, blocks", size, round_us({cluster_exchange, size, size}, bench));
            print("cluster barrier us, blocks", size, round_us({cluster_sync, size, size}, bench));
        }
    }
    std::printf("}\n");
    return 0;
}
