// The choice of the kernels: FUSEDRNN_ISA where it is set, or the first entry of the table that build and CPU have; and of
// those for bfloat16 beside them: FUSEDRNN_BF16_ISA likewise; of
// those for int8, FUSEDRNN_INT8_ISA.
#include "cpu/dispatch.h"

#include <cstddef>
#include <cstdlib>
#include <map>
#include <mutex>
#include <stdexcept>
#include <string>
#include <utility>

#include "cpu/features.h"
#include "cpu/kernels.h"
#include "layers/layer_table.h"

namespace fusedrnn {

// Every instruction set's objects define these four.
#define FUSEDRNN_DECLARE_TABLES(isa)        \
    namespace isa {                         \
    const KernelTable<float>& table_f32();  \
    const KernelTable<double>& table_f64(); \
    const LayerTable<float>& layers_f32();  \
    const LayerTable<double>& layers_f64(); \
    }
FUSEDRNN_DECLARE_TABLES(avx512)
FUSEDRNN_DECLARE_TABLES(avx2)
FUSEDRNN_DECLARE_TABLES(neon)
FUSEDRNN_DECLARE_TABLES(scalar)
#undef FUSEDRNN_DECLARE_TABLES
namespace avx512bf16 {
Bf16Kernels kernels_bf16();
}
namespace amx {
Bf16Kernels kernels_bf16();
}
namespace amx3 {
Bf16Kernels kernels_bf16();
}
namespace avx512vnni {
extern const QuantizedKernels kQuantizedKernels[][kWeightFormats];
}
namespace amxint8 {
extern const QuantizedKernels kQuantizedKernels[][kWeightFormats];
}

namespace {

#define FUSEDRNN_TABLES(isa)                                                                               \
    [] {                                                                                                   \
        return Kernels{#isa, &isa::table_f32(), &isa::table_f64(), &isa::layers_f32(), &isa::layers_f64(), \
                       {}};                                                                                \
    }

#if FUSEDRNN_HAVE_AVX512
constexpr auto kAvx512 = FUSEDRNN_TABLES(avx512);
#else
constexpr std::nullptr_t kAvx512 = nullptr;
#endif
#if FUSEDRNN_HAVE_AVX2
constexpr auto kAvx2 = FUSEDRNN_TABLES(avx2);
#else
constexpr std::nullptr_t kAvx2 = nullptr;
#endif
#if FUSEDRNN_HAVE_NEON
constexpr auto kNeon = FUSEDRNN_TABLES(neon);
#else
constexpr std::nullptr_t kNeon = nullptr;
#endif
#if FUSEDRNN_HAVE_SCALAR
constexpr auto kScalar = FUSEDRNN_TABLES(scalar);
#else
constexpr std::nullptr_t kScalar = nullptr;
#endif
#undef FUSEDRNN_TABLES
#if FUSEDRNN_HAVE_AVX512BF16
constexpr auto kAvx512Bf16 = avx512bf16::kernels_bf16;
#else
constexpr std::nullptr_t kAvx512Bf16 = nullptr;
#endif
#if FUSEDRNN_HAVE_AMX
constexpr auto kAmx = amx::kernels_bf16;
constexpr Bf16Kernels (*kAmx3)() = amx3::kernels_bf16;
#else
constexpr std::nullptr_t kAmx = nullptr;
constexpr Bf16Kernels (*kAmx3)() = nullptr;
#endif
#if FUSEDRNN_HAVE_AVX512VNNI
constexpr auto kAvx512Vnni = avx512vnni::kQuantizedKernels;
#else
constexpr std::nullptr_t kAvx512Vnni = nullptr;
#endif
#if FUSEDRNN_HAVE_AMXINT8
constexpr auto kAmxInt8 = amxint8::kQuantizedKernels;
#else
constexpr std::nullptr_t kAmxInt8 = nullptr;
#endif

struct Isa {
    const char* name;
    bool (*supported)();
    Kernels (*kernels)();  // null where this build lacks them
};

// In the order of preference.
constexpr Isa kIsas[] = {
    {"avx512", cpu_has_avx512, kAvx512},
    {"avx2", cpu_has_avx2, kAvx2},
    {"neon", cpu_has_neon, kNeon},
    {"scalar", [] { return true; }, kScalar},
};

// Kernels of some kind beside avx512's, for processors that have more.
template <class Table>
struct IsaBeyond {
    const char* name;
    bool (*supported)();
    Table table;  // null where this build lacks them
};
constexpr IsaBeyond<Bf16Kernels (*)()> kBf16Isas[] = {
    {"amx", cpu_has_amx, kAmx},
    {"avx512bf16", cpu_has_avx512bf16, kAvx512Bf16},
};
constexpr IsaBeyond<const QuantizedKernels (*)[kWeightFormats]> kInt8Isas[] = {
    {"amxint8", cpu_has_amx, kAmxInt8},
    {"avx512vnni", cpu_has_avx512vnni, kAvx512Vnni},
};

// The first that there is, null where there is none; one that the environment names is used or refused.
template <class Table, int kCount>
const IsaBeyond<Table>* choose_beyond(const IsaBeyond<Table> (&isas)[kCount], const char* variable) {
    const char* wanted = std::getenv(variable);
    const bool named = wanted != nullptr && *wanted != '\0';
    std::string names;
    for (const IsaBeyond<Table>& isa : isas) {
        names += (names.empty() ? "" : ", ") + std::string(isa.name);
        if (named && std::string(wanted) != isa.name) continue;
        if (std::string(kernels().isa) == "avx512" && isa.table != nullptr && isa.supported()) return &isa;
    }
    if (!named) return nullptr;
    throw std::runtime_error(std::string(variable) + ": expected one of " + names +
                             " that CPU and build have, beside avx512, got '" + wanted + "'");
}

Kernels choose_named(const std::string& name) {
    std::string names;
    for (const Isa& isa : kIsas) {
        if (name == isa.name) {
            if (isa.kernels == nullptr) throw std::runtime_error("FUSEDRNN_ISA: this build lacks " + name);
            if (!isa.supported()) throw std::runtime_error("FUSEDRNN_ISA: this CPU lacks " + name);
            return isa.kernels();
        }
        names += (names.empty() ? "" : ", ") + std::string(isa.name);
    }
    throw std::runtime_error("FUSEDRNN_ISA: expected one of " + names + ", got '" + name + "'");
}

Kernels choose() {
    const char* wanted = std::getenv("FUSEDRNN_ISA");
    if (wanted != nullptr && *wanted != '\0') return choose_named(wanted);
    for (const Isa& isa : kIsas) {
        if (isa.kernels != nullptr && isa.supported()) return isa.kernels();
    }
    throw std::runtime_error(
        "fusedrnn: this CPU has none of the instruction sets of this build; build it without "
        "FUSEDRNN_ISAS, which builds all of them");
}

std::vector<RecurrentCell> compiled_cells(const Kernels& chosen) {
    const KernelTable<float>& f32 = *chosen.f32;
    std::vector<RecurrentCell> cells;
    for (int i = 0; i < f32.cell_count; ++i) {
        const bool quantized = f32.quantized[i][0].forward != nullptr;
        cells.push_back({f32.traits[i], f32.cells[i], chosen.f64->cells[i],
                         quantized ? f32.quantized[i] : nullptr, nullptr});
    }
    return cells;
}

}  // namespace

const Bf16Kernels& bf16_kernels(Compute compute) {
    static const auto* const isa = choose_beyond(kBf16Isas, "FUSEDRNN_BF16_ISA");
    const auto named = [](Bf16Kernels (*table)()) {
        if (isa == nullptr || table == nullptr) return Bf16Kernels{};
        Bf16Kernels found = table();
        found.isa = isa->name;
        return found;
    };
    static const Bf16Kernels one = named(isa == nullptr ? nullptr : isa->table);
    // Three products for one are worth it with AMX alone.
    static const Bf16Kernels three = named(isa == nullptr || isa->table != kAmx ? nullptr : kAmx3);
    return compute == Compute::kBf16x3 ? three : one;
}

const QuantizedKernels& quantized_kernels(const RecurrentCell& cell, int format) {
    static const auto* const beyond = choose_beyond(kInt8Isas, "FUSEDRNN_INT8_ISA");
    if (format != kInt8 || beyond == nullptr) return cell.quantized[format];
    return beyond->table[&cell - kernels().cells.first][format];
}

const RecurrentCell* bf16_cell(const RecurrentCell& cell, Compute compute) {
    const KernelTable<float>* const table = bf16_kernels(compute).table;
    if (table == nullptr) return nullptr;
    static std::mutex mutex;
    static std::map<std::pair<const RecurrentCell*, Compute>, RecurrentCell> cells;
    const std::lock_guard<std::mutex> lock(mutex);
    const auto [found, is_new] = cells.try_emplace({&cell, compute}, cell);
    if (is_new) {
        RecurrentCell& made = found->second;
        made.f32 = cell.programs != nullptr ? table->program : table->cells[&cell - kernels().cells.first];
        made.quantized = nullptr;
        made.compute = compute;
    }
    return &found->second;
}

RecurrentCell program_cell(const CellTraits& traits, const CellPrograms& programs) {
    return {traits, kernels().f32->program, kernels().f64->program, nullptr, &programs};
}

std::vector<IsaStatus> isa_status() {
    std::vector<IsaStatus> status;
    for (const Isa& isa : kIsas) status.push_back({isa.name, isa.kernels != nullptr, isa.supported()});
    return status;
}

const Kernels& kernels() {
    static const Kernels chosen = [] {
        Kernels kernels = choose();
        static const std::vector<RecurrentCell> cells = compiled_cells(kernels);
        kernels.cells = {cells.data(), static_cast<int>(cells.size())};
        return kernels;
    }();
    return chosen;
}

template <>
const KernelTable<float>& kernel_table<float>() {
    return *kernels().f32;
}
template <>
const KernelTable<double>& kernel_table<double>() {
    return *kernels().f64;
}
template <>
const LayerTable<float>& layer_table<float>() {
    return *kernels().layers_f32;
}
template <>
const LayerTable<double>& layer_table<double>() {
    return *kernels().layers_f64;
}

}  // namespace fusedrnn
