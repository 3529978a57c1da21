// Runs the kernels of one instruction set, without Python, and compares them with a slow reference.
//
//   kernel_check ISA [N]
//
// N runs every N-th case only. Of amx, avx512bf16 and, for products of two bfloat16 a factor, amx3 it runs what they have, the
// kernels for bfloat16, of amxint8 and avx512vnni those for int8. Prints a digest of every case's results: two runs whose lines are equal gave
// the same bits (tools/compare_kernels.py). The exit status is 0 only if all results are near to the
// reference.
#include <cstdlib>
#include <exception>
#include <stdexcept>
#include <string>

#include "check.h"

int main(int argc, char** argv) {
    const int every = argc == 3 ? std::atoi(argv[2]) : 1;
    if (argc < 2 || argc > 3 || every < 1) {
        std::fprintf(stderr, "usage: kernel_check ISA [N]\n");
        return 2;
    }
    try {
        const std::string isa = argv[1];
        const bool bf16x3 = isa == "amx3", bf16 = bf16x3 || isa == "amx" || isa == "avx512bf16";
        const bool int8 = isa == "amxint8" || isa == "avx512vnni";
        setenv("FUSEDRNN_ISA", bf16 || int8 ? "avx512" : argv[1], 1);
        if (bf16) setenv("FUSEDRNN_BF16_ISA", bf16x3 ? "amx" : argv[1], 1);
        if (int8) setenv("FUSEDRNN_INT8_ISA", argv[1], 1);
        const fusedrnn::Kernels& kernels = fusedrnn::kernels();
        std::printf("isa %s, lanes %d %d\n", kernels.isa, kernels.f32->lanes, kernels.f64->lanes);
        kernel_check::Report report(every);
        if (bf16 || int8) {
            const fusedrnn::RecurrentCell& cell = kernels.cells.first[0];
            const auto compute = bf16x3 ? fusedrnn::Compute::kBf16x3 : fusedrnn::Compute::kBf16;
            if (bf16
                    ? fusedrnn::bf16_kernels(compute).table == nullptr
                    : &fusedrnn::quantized_kernels(cell, fusedrnn::kInt8) == &cell.quantized[fusedrnn::kInt8])
                throw std::runtime_error("this CPU or build lacks " + isa);
            if (bf16) {
                kernel_check::check_bf16(kernels, compute, report);
            } else {
                kernel_check::check_int8(kernels, report);
            }
            std::printf("%d cases, %d failures\n", report.cases(), report.failures());
            return report.failures() == 0 ? 0 : 1;
        }
        kernel_check::check_programs(*kernels.f32, *kernels.layers_f32, report);
        kernel_check::check_programs(*kernels.f64, *kernels.layers_f64, report);
        kernel_check::check_activations(*kernels.layers_f32, report);
        kernel_check::check_layers(*kernels.f32, *kernels.layers_f32, report);
        kernel_check::check_activations(*kernels.layers_f64, report);
        kernel_check::check_layers(*kernels.f64, *kernels.layers_f64, report);
        kernel_check::check_sequences(*kernels.layers_f32, report);
        kernel_check::check_decoders(*kernels.layers_f32->sequence->decoder, report);
        kernel_check::check_searches(*kernels.layers_f32->sequence->decoder, report);
        kernel_check::check_sequences(*kernels.layers_f64, report);
        kernel_check::check_decoders(*kernels.layers_f64->sequence->decoder, report);
        kernel_check::check_searches(*kernels.layers_f64->sequence->decoder, report);
        kernel_check::check_decoding(*kernels.layers_f32, report);
        kernel_check::check_decoding(*kernels.layers_f64, report);
        kernel_check::check_transducers(*kernels.layers_f32, report);
        kernel_check::check_transducers(*kernels.layers_f64, report);
        kernel_check::check_quantum(*kernels.layers_f32, report);
        kernel_check::check_quantum(*kernels.layers_f64, report);
        kernel_check::check_cells<float>(kernels, kernels.f32->lanes, report);
        kernel_check::check_cells<double>(kernels, kernels.f64->lanes, report);
        std::printf("%d cases, %d failures\n", report.cases(), report.failures());
        return report.failures() == 0 ? 0 : 1;
    } catch (const std::exception& error) {
        std::fprintf(stderr, "kernel_check: %s\n", error.what());
        return 2;
    }
}
