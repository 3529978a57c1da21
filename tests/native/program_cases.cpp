// Programs of pointwise operations: every operation against the library's functions, slots at all kinds of distances.
#include "check.h"

namespace kernel_check {
namespace {

using namespace fusedrnn;

// In double: the error of its functions is nothing beside the tolerance.
double exact(ProgramOperation operation, double a, double b, double c) {
    const auto sigmoid = [](double x) { return 1 / (1 + std::exp(-x)); };
    switch (operation) {
        case kProgram_copy:
            return a;
        case kProgram_add:
            return a + b;
        case kProgram_subtract:
            return a - b;
        case kProgram_multiply:
            return a * b;
        case kProgram_divide:
            return a / b;
        case kProgram_fma:
            return a * b + c;
        case kProgram_mix:
            return a * b + (1 - a) * c;
        case kProgram_rest:
            return (1 - a) * b;
        case kProgram_sigmoid_slope:
            return a * b * c * (1 - c);
        case kProgram_tanh_slope:
            return a * b * (1 - c) * (1 + c);
        case kProgram_less:
            return a < b ? 1 : 0;
        case kProgram_less_equal:
            return a <= b ? 1 : 0;
        case kProgram_where:
            return a > 0 ? b : c;
        case kProgram_minimum:
            return std::fmin(a, b);
        case kProgram_maximum:
            return std::fmax(a, b);
        case kProgram_abs:
            return std::fabs(a);
        case kProgram_relu:
            return std::fmax(a, 0.0);
        case kProgram_sqrt:
            return std::sqrt(a);
        case kProgram_exp:
            return std::exp(a);
        case kProgram_log:
            return std::log(a);
        case kProgram_sigmoid:
            return sigmoid(a);
        case kProgram_tanh:
            return std::tanh(a);
        case kProgram_softplus:
            return std::log1p(std::exp(a));
        case kProgram_elu:
            return a > 0 ? a : std::expm1(a);
        case kProgram_erf:
            return std::erf(a);
        case kProgram_sin:
            return std::sin(a);
        case kProgram_cos:
            return std::cos(a);
        case kProgramOperations:
            break;
    }
    return 0;
}

// One operation over `rows` rows: operands between other vectors, one that all rows share, a result that goes where
// an operand was.
template <class T>
void check_operation(const KernelTable<T>& table, const LayerTable<T>& layers, int operation,
                     std::int64_t rows, Report& report) {
    const std::string name = std::string(type_name<T>()) + " program " +
                             kProgramOperationList[operation].name + " rows" + std::to_string(rows);
    constexpr std::int64_t kWidth = 16;  // of the longest vector: the same numbers for all of them
    const auto number = static_cast<ProgramOperation>(operation);
    const bool positive = number == kProgram_log || number == kProgram_sqrt;
    Random random(17);
    Array<T> a(rows, kWidth, 2 * kWidth), b(rows, kWidth, 5), c(1, kWidth), y(rows, kWidth, kWidth);
    for (Array<T>* operand : {&a, &b, &c}) {
        for (std::int64_t i = 0; i < operand->rows(); ++i) {
            for (std::int64_t k = 0; k < kWidth; ++k) {
                const double value = 3 * random.uniform() + (operand == &b ? 4 : 0);
                operand->row(i)[k] = static_cast<T>(positive ? std::fabs(value) + 0.125 : value);
            }
        }
    }
    Array<double> want(rows, kWidth);
    for (std::int64_t i = 0; i < rows; ++i) {
        for (std::int64_t k = 0; k < kWidth; ++k) {
            want.row(i)[k] = exact(number, static_cast<double>(a.row(i)[k]), static_cast<double>(b.row(i)[k]),
                                   static_cast<double>(c.row(0)[k]));
        }
    }
    const auto code = static_cast<std::uint16_t>(operation);
    const Instruction apart{code, 3, 0, 1, 2}, in_place{code, 0, 0, 1, 2};
    for (std::int64_t k = 0; k < kWidth; k += table.lanes) {
        const Slot<T> slots[] = {{a.data() + k, a.stride()},
                                 {b.data() + k, b.stride()},
                                 {c.data() + k, 0},
                                 {y.data() + k, y.stride()}};
        layers.run_program(&apart, 1, rows, slots);
        layers.run_program(&in_place, 1, rows, slots);
    }
    report.compare(name, "y", y, want);
    report.compare(name, "in place", a, want);
    report.done(name, {{"y", Digest().add(y)}});
}

}  // namespace

template <class T>
void check_programs(const KernelTable<T>& table, const LayerTable<T>& layers, Report& report) {
    for (int operation = 0; operation < kProgramOperations; ++operation) {
        for (const std::int64_t rows : {1, 2, 5, 33}) {
            if (report.next()) check_operation(table, layers, operation, rows, report);
        }
    }
}

template void check_programs<float>(const KernelTable<float>&, const LayerTable<float>&, Report&);
template void check_programs<double>(const KernelTable<double>&, const LayerTable<double>&, Report&);

}  // namespace kernel_check
