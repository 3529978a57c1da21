// The same products and layers with a cuBLAS, the one of fake_cublas.cpp; and libraries that cannot serve.
#include <dlfcn.h>

#include <cstdlib>

#include "kernel_check.h"

namespace cuda_check {

using namespace fusedrnn::cuda;

namespace {

// Rows that overlap, such as windows of a longer series, are none of a matrix of cuBLAS.
void check_overlapping_rows(Report& report) {
    report.begin(Math::ieee, "rows that overlap");
    Product product{};
    product.layout = Layout::kNT;
    product.m = 4, product.n = 3, product.k = 5;
    product.a = {nullptr, 2}, product.b = {nullptr, 5};
    product.c_stride = 3;
    Cublas* const cublas = Cublas::of_current_device();
    if (cublas == nullptr || cublas->takes(Math::ieee, product)) report.fail("taken", 0);
    product.a.stride = 5;
    if (cublas == nullptr || !cublas->takes(Math::ieee, product)) report.fail("not taken without overlap", 0);
}

// dx is made in 16 bits where x is. Wider elements would run over what a caller gives, so here there is room.
void check_result_types(Report& report) {
    void* const library = dlopen(FUSEDRNN_FAKE_CUBLAS, RTLD_NOW | RTLD_NOLOAD);
    const auto count = reinterpret_cast<long (*)(int, int, int)>(dlsym(library, "fake_cublas_calls"));
    const DeviceBlock memory(3 * 16 * 4), partial(Launcher(Math::bf16, nullptr).partial_bytes(4, 4, 4));
    for (const auto& [math, type] : {std::pair{Math::bf16, 14}, std::pair{Math::fp16, 2}}) {
        for (const Layout layout : {Layout::kNT, Layout::kNN, Layout::kTN}) {
            report.begin(math, "type of a result, layout " + std::to_string(static_cast<int>(layout)));
            auto* const place = static_cast<float*>(memory.data());
            Product product{};
            product.layout = layout;
            product.m = product.n = product.k = 4;
            product.a = {place, 4}, product.b = {place + 16, 4};
            product.c = place + 32, product.c_stride = 4;
            const int want = layout == Layout::kNN ? type : 0;
            const long before = count(type, want, 68);
            Launcher(math, nullptr).multiply(product, partial.data());
            if (count(type, want, 68) != before + 1) report.fail("another one", 0);
        }
    }
}

void expect_none(const char* choice, const char* failure, const char* reason, Report& report) {
    report.begin(Math::ieee, std::string("cublas ") + choice + " " + failure);
    setenv("FAKE_CUBLAS", failure, 1);
    choose_cublas(choice);
    if (Cublas::of_current_device() != nullptr) report.fail("expected none", 0);
    const std::string text = describe_cublas();
    if (text.rfind("none (", 0) != 0 || text.find(reason) == std::string::npos) report.fail(text, 0);
    unsetenv("FAKE_CUBLAS");
}

void check_choices(Report& report) {
    expect_none("0", "", "FUSEDRNN_CUBLAS=0", report);
    expect_none("/nowhere/libcublas.so", "", "/nowhere/libcublas.so", report);
    expect_none("libm.so.6", "", "libm.so.6: has no cublasCreate_v2", report);
    expect_none(FUSEDRNN_FAKE_CUBLAS, "no_handle", "cublasCreate: CUBLAS_STATUS_NOT_INITIALIZED (1)", report);
    choose_cublas(FUSEDRNN_FAKE_CUBLAS);
    check_overlapping_rows(report);
    check_result_types(report);
}

}  // namespace

// Every mode and cell; the last case, or all, of rows that need no copy, the others of rows of all lengths.
void check_cells(bool all_plain, Report& report) {
    for (int m = 0; m < kMathCount; ++m) {
        for (const DeviceCell& c : device_cells()) {
            for (std::int64_t counter = 1; counter <= 4; ++counter) {
                if (!report.next()) continue;
                run_case({static_cast<Math>(m),
                          &c,
                          {5, 3, 20, 17, 17, 0, false},
                          counter,
                          all_plain || counter == 4},
                         report);
            }
        }
    }
}

// Products of steps by the library.
void check_steps(Report& report) {
    const std::int64_t usual = least_library_step;
    least_library_step = 1;
    check_cells(true, report);
    least_library_step = usual;
}

void check_cublas(Report& report) {
    if (report.next_always()) check_choices(report);
    choose_cublas(FUSEDRNN_FAKE_CUBLAS);
    check_products(report);
    check_cells(false, report);
    check_steps(report);
    choose_cublas("0");
}

}  // namespace cuda_check
