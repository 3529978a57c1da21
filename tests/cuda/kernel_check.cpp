// Runs the CUDA kernels on the emulator, without Python or a GPU, and compares them with a slow reference.
//
//   cuda_kernel_check [N]
//
// N runs every N-th case only. The exit status is 0 only if all results are near to the reference.
#include "kernel_check.h"

#include <cstdlib>
#include <exception>

int main(int argc, char** argv) {
    const int every = argc == 2 ? std::atoi(argv[1]) : 1;
    if (argc > 2 || every < 1) {
        std::fprintf(stderr, "usage: cuda_kernel_check [N]\n");
        return 2;
    }
    try {
        cuda_check::Report report(every);
        cuda_check::check_products(report);
        cuda_check::check_cublas(report);
        cuda_check::check_graphs(report);
        cuda_check::check_cells(report);
        cuda_check::check_persistent(report);
        cuda_check::check_cluster(report);
        cuda_check::check_order(report);
        if (every == 1) report.expect_all_ran();
        report.finish();
        return report.failures() == 0 ? 0 : 1;
    } catch (const std::exception& error) {
        std::fprintf(stderr, "cuda_kernel_check: %s\n", error.what());
        return 2;
    }
}
