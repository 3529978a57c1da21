#include "cublas.h"

#include <dlfcn.h>

#include <cstdlib>
#include <limits>
#include <map>
#include <memory>
#include <optional>
#include <type_traits>

#include "launches.h"

namespace fusedrnn::cuda {

// The functions, as NVIDIA's documentation of cuBLAS 11 to 13 describes them; enumerations are ints.
struct CublasLibrary {
    int (*create)(void** handle);
    int (*set_stream)(void* handle, Stream stream);
    int (*set_workspace)(void* handle, void* workspace, std::size_t bytes);
    int (*set_math_mode)(void* handle, int mode);
    int (*gemm)(void* handle, int op_a, int op_b, int m, int n, int k, const void* alpha, const void* a,
                int a_type, int lda, const void* b, int b_type, int ldb, const void* beta, void* c,
                int c_type, int ldc, int compute_type, int algorithm);
    int (*property)(int which, int* value);
    const char* (*status_name)(int status);
    const char* (*status_text)(int status);

    std::string found;    // version and file; empty: it cannot be used
    std::string problem;  // why not, or not on every device
    std::map<int, std::unique_ptr<Cublas>> handles;
};

namespace {

constexpr int kVersions[] = {13, 12, 11};
// Values of NVIDIA's enumerations.
constexpr int kKeep = 0, kTranspose = 1;                                 // cublasOperation_t
constexpr int kFloat32 = 0, kFloat64 = 1, kFloat16 = 2, kBfloat16 = 14;  // cudaDataType_t
constexpr int kSumFloat32 = 68, kSumFloat64 = 70, kFactorsTf32 = 77;     // cublasComputeType_t
constexpr int kDefaultAlgorithm = -1;                                    // cublasGemmAlgo_t
constexpr int kNoSumsOf16Bits = 16;                                      // cublasMath_t

// The library and what it is looked for with. Never destroyed: the driver may be gone before it would be.
struct Search {
    std::mutex mutex;
    std::optional<std::string> choice;
    std::vector<std::string> offered;
    // The last is in use; calls may be at work with those before.
    std::vector<std::unique_ptr<CublasLibrary>> libraries;
    bool is_due = true;  // to look for one
};
Search& search() {
    static Search& made = *new Search;
    return made;
}

std::string soname(int version) { return "libcublas.so." + std::to_string(version); }

std::string version_text(const CublasLibrary& library) {
    std::string text;
    for (int part = 0; part < 3; ++part) {
        int value = 0;
        library.property(part, &value);
        if (part > 0) text += '.';
        text += std::to_string(value);
    }
    return text;
}

// Whether the file is a cuBLAS; else `problem` says why not.
bool open_library(CublasLibrary& library, const std::string& file, int flags) {
    void* const opened = dlopen(file.c_str(), RTLD_NOW | RTLD_LOCAL | flags);
    if (opened == nullptr) {
        const char* const text = dlerror();
        library.problem = text == nullptr ? file + ": not loaded" : text;
        return false;
    }
    std::string lacking;
    const auto find = [&](auto& function, const char* name) {
        function = reinterpret_cast<std::remove_reference_t<decltype(function)>>(dlsym(opened, name));
        if (function == nullptr && lacking.empty()) lacking = name;
    };
    find(library.create, "cublasCreate_v2");
    find(library.set_stream, "cublasSetStream_v2");
    find(library.set_workspace, "cublasSetWorkspace_v2");
    find(library.set_math_mode, "cublasSetMathMode");
    find(library.gemm, "cublasGemmEx");
    find(library.property, "cublasGetProperty");
    find(library.status_name, "cublasGetStatusName");
    find(library.status_text, "cublasGetStatusString");
    if (!lacking.empty()) {
        library.problem = file + ": has no " + lacking;
        return false;
    }
    Dl_info place{};
    const bool known =
        dladdr(reinterpret_cast<void*>(library.gemm), &place) != 0 && place.dli_fname != nullptr;
    library.found = version_text(library) + " (" + (known ? place.dli_fname : file) + ")";
    library.problem.clear();
    return true;
}

// Offered files come before the system's: once a library is loaded, whoever asks for one of its name gets it,
// and PyTorch must get its own.
std::unique_ptr<CublasLibrary> look(const std::string& choice, const std::vector<std::string>& offered) {
    auto library = std::make_unique<CublasLibrary>();
    if (choice == "0") {
        library->problem = "FUSEDRNN_CUBLAS=0";
        return library;
    }
    if (!choice.empty()) {
        open_library(*library, choice, 0);
        return library;
    }
    if (!kFindsLibraries) {
        library->problem = "this build takes the one that FUSEDRNN_CUBLAS names";
        return library;
    }
    for (const int version : kVersions) {
        if (open_library(*library, soname(version), RTLD_NOLOAD)) return library;
    }
    std::string problems;
    for (const std::string& file : offered) {
        if (open_library(*library, file, 0)) return library;
        problems += library->problem + "; ";
    }
    for (const int version : kVersions) {
        if (open_library(*library, soname(version), 0)) return library;
    }
    library->problem = problems + "no " + soname(kVersions[0]) + " or earlier was found";
    return library;
}

// The mutex is the caller's.
CublasLibrary& library_of(Search& s) {
    if (s.is_due) {
        const char* const environment = std::getenv("FUSEDRNN_CUBLAS");
        const std::string choice = s.choice.value_or(environment == nullptr ? "" : environment);
        s.libraries.push_back(look(choice, s.offered));
        s.is_due = false;
    }
    return *s.libraries.back();
}

std::unique_ptr<Cublas> make_handle(CublasLibrary& library, const Device& device) {
    const RelaxedCapture relaxed;
    void* handle = nullptr;
    const char* place = "cublasCreate";
    int status = library.create(&handle);
    if (status == 0) {
        place = "cublasSetMathMode";
        status = library.set_math_mode(handle, kNoSumsOf16Bits);
    }
    if (status == 0) return std::make_unique<Cublas>(library, handle, device.architecture);
    library.problem = "cuda:" + std::to_string(device.index) + ": " + place + ": " +
                      library.status_name(status) + " (" + std::to_string(status) + ")";
    return nullptr;
}

struct Types {
    int factors, result, compute;
};
Types types_of(Math math, Layout layout) {
    if (math == Math::f64) return {kFloat64, kFloat64, kSumFloat64};
    if (math == Math::ieee) return {kFloat32, kFloat32, kSumFloat32};
    if (math == Math::tf32) return {kFloat32, kFloat32, kFactorsTf32};
    const int factors = math == Math::bf16 ? kBfloat16 : kFloat16;
    return {factors, layout == Layout::kNN ? factors : kFloat32, kSumFloat32};
}

}  // namespace

void offer_cublas(std::vector<std::string> files) {
    Search& s = search();
    const std::lock_guard lock(s.mutex);
    s.offered = std::move(files);
}

void choose_cublas(const std::string& choice) {
    Search& s = search();
    const std::lock_guard lock(s.mutex);
    s.choice = choice;
    s.is_due = true;
}

std::string describe_cublas() {
    Search& s = search();
    const std::lock_guard lock(s.mutex);
    const CublasLibrary& library = library_of(s);
    if (library.problem.empty()) return library.found;
    return "none (" + library.problem + (library.found.empty() ? "" : ", " + library.found) + ")";
}

Cublas* Cublas::of_current_device() {
    Search& s = search();
    const std::lock_guard lock(s.mutex);
    CublasLibrary& library = library_of(s);
    if (library.found.empty()) return nullptr;
    const Device device = current_device();
    const auto [at, is_new] = library.handles.try_emplace(device.index);
    if (is_new) at->second = make_handle(library, device);
    return at->second.get();
}

// As NVIDIA recommends for the devices.
Cublas::Cublas(const CublasLibrary& library, void* handle, int architecture)
    : library_(library), handle_(handle), workspace_bytes_((architecture >= 90 ? 32 : 4) << 20) {}

bool Cublas::takes(Math math, const Product& p) const {
    const auto fits = [](std::int64_t width, std::int64_t stride) {
        return width > 0 && width <= stride && stride <= std::numeric_limits<int>::max();
    };
    return math != Math::tf32x3 && p.m > 0 && p.m <= std::numeric_limits<int>::max() &&
           fits(p.layout == Layout::kTN ? p.m : p.k, p.a.stride) && p.k <= std::numeric_limits<int>::max() &&
           fits(p.layout == Layout::kNT ? p.k : p.n, p.b.stride) && fits(p.n, p.c_stride);
}

// cuBLAS has columns where we have rows: it is asked for C^T = B^T A^T.
void Cublas::multiply(Math math, const Product& p, bool add, Stream stream, void* workspace) {
    const Types types = types_of(math, p.layout);
    call_library(stream, [=, this] {
        const float alpha = 1, beta = add ? 1 : 0;
        const double wide_alpha = 1, wide_beta = beta;
        const bool wide = math == Math::f64;
        const std::lock_guard lock(mutex_);
        check(library_.set_stream(handle_, stream), "cublasSetStream");
        check(library_.set_workspace(handle_, workspace, static_cast<std::size_t>(workspace_bytes_)),
              "cublasSetWorkspace");
        check(library_.gemm(
                  handle_, p.layout == Layout::kNT ? kTranspose : kKeep,
                  p.layout == Layout::kTN ? kTranspose : kKeep, static_cast<int>(p.n), static_cast<int>(p.m),
                  static_cast<int>(p.k), wide ? static_cast<const void*>(&wide_alpha) : &alpha, p.b.data,
                  types.factors, static_cast<int>(p.b.stride), p.a.data, types.factors,
                  static_cast<int>(p.a.stride), wide ? static_cast<const void*>(&wide_beta) : &beta, p.c,
                  types.result, static_cast<int>(p.c_stride), types.compute, kDefaultAlgorithm),
              "cublasGemmEx");
    });
}

void Cublas::check(int status, const char* place) const {
    if (status != 0) {
        throw Error(status, library_.status_name(status), library_.status_text(status), place);
    }
}

}  // namespace fusedrnn::cuda
