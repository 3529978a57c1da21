// Runs the kernels of one instruction set, without Python, and compares them with a slow reference.
//
//   kernel_check ISA [N]
//
// N runs every N-th case only. Prints a digest of every case's results: two runs whose lines are equal gave
// the same bits (tools/compare_kernels.py). The exit status is 0 only if all results are near to the
// reference.
#include <cstdlib>
#include <exception>

#include "check.h"

int main(int argc, char** argv) {
    const int every = argc == 3 ? std::atoi(argv[2]) : 1;
    if (argc < 2 || argc > 3 || every < 1) {
        std::fprintf(stderr, "usage: kernel_check ISA [N]\n");
        return 2;
    }
    try {
        setenv("FUSEDRNN_ISA", argv[1], 1);
        const fusedrnn::Kernels& kernels = fusedrnn::kernels();
        std::printf("isa %s, lanes %d %d\n", kernels.isa, kernels.f32->lanes, kernels.f64->lanes);
        kernel_check::Report report(every);
        kernel_check::check_programs(*kernels.f32, *kernels.layers_f32, report);
        kernel_check::check_programs(*kernels.f64, *kernels.layers_f64, report);
        kernel_check::check_layers(*kernels.f32, *kernels.layers_f32, report);
        kernel_check::check_layers(*kernels.f64, *kernels.layers_f64, report);
        kernel_check::check_sequences(*kernels.layers_f32, report);
        kernel_check::check_decoders(*kernels.layers_f32, report);
        kernel_check::check_sequences(*kernels.layers_f64, report);
        kernel_check::check_decoders(*kernels.layers_f64, report);
        kernel_check::check_decoding(*kernels.layers_f32, report);
        kernel_check::check_decoding(*kernels.layers_f64, report);
        kernel_check::check_transducers(*kernels.layers_f32, report);
        kernel_check::check_transducers(*kernels.layers_f64, report);
        kernel_check::check_cells<float>(kernels, kernels.f32->lanes, report);
        kernel_check::check_cells<double>(kernels, kernels.f64->lanes, report);
        std::printf("%d cases, %d failures\n", report.cases(), report.failures());
        return report.failures() == 0 ? 0 : 1;
    } catch (const std::exception& error) {
        std::fprintf(stderr, "kernel_check: %s\n", error.what());
        return 2;
    }
}
