#include <cmath>

#include "inputs.h"
#include "kernel_check.h"
#include "kernels/cluster_arguments.h"
#include "kernels/persistent_arguments.h"

namespace cuda_check {

using namespace fusedrnn::cuda;

namespace {

// Launches by kernel and form, for each mode.
std::map<std::string, std::int64_t[kMathCount]> launches;

std::string label(const char* kernel, const char* form) {
    return *form == '\0' ? kernel : std::string(kernel) + ", " + form;
}

void observe(Math math, const char* kernel, const char* form) {
    ++launches[label(kernel, form)][static_cast<int>(math)];
}

std::int64_t item(Kind kind) { return kind == Kind::f64 ? 8 : kind == Kind::f32 ? 4 : 2; }

// x with so many significant bits, none of them below 2^least.
double round_bits(double x, int bits, int least) {
    int exponent;
    std::frexp(x, &exponent);
    const int unit = std::max(exponent - bits, least);
    return std::ldexp(std::nearbyint(std::ldexp(x, -unit)), unit);
}

void encode(Kind kind, double x, unsigned char* to) {
    if (kind == Kind::f64) {
        std::memcpy(to, &x, sizeof x);
        return;
    }
    const auto y = static_cast<float>(round_to(kind, x));
    std::uint32_t bits;
    std::memcpy(&bits, &y, sizeof bits);
    if (kind == Kind::f32) {
        std::memcpy(to, &bits, sizeof bits);
        return;
    }
    std::uint16_t half = static_cast<std::uint16_t>(bits >> 16);
    if (kind == Kind::fp16) {
        int exponent;
        const double mantissa = std::frexp(std::fabs(static_cast<double>(y)), &exponent);
        half = static_cast<std::uint16_t>(std::signbit(y) ? 0x8000 : 0);
        if (exponent > -14 && mantissa > 0) {
            half |= static_cast<std::uint16_t>(exponent + 14) << 10;
            half |= static_cast<std::uint16_t>(std::ldexp(mantissa, 11)) & 0x3FF;
        } else {
            half |= static_cast<std::uint16_t>(std::ldexp(std::fabs(static_cast<double>(y)), 24));
        }
    }
    std::memcpy(to, &half, sizeof half);
}

double decode(Kind kind, const unsigned char* from) {
    if (kind == Kind::f64) {
        double x;
        std::memcpy(&x, from, sizeof x);
        return x;
    }
    std::uint32_t bits = 0;
    std::memcpy(&bits, from, static_cast<std::size_t>(item(kind)));
    if (kind == Kind::fp16) {
        const int exponent = static_cast<int>(bits >> 10 & 31), mantissa = static_cast<int>(bits & 0x3FF);
        const double sign = (bits & 0x8000) != 0 ? -1 : 1;
        if (exponent == 31) return mantissa == 0 ? sign * HUGE_VAL : std::nan("");
        return sign * std::ldexp(exponent == 0 ? mantissa : mantissa + 1024, std::max(exponent, 1) - 25);
    }
    if (kind == Kind::bf16) bits <<= 16;
    float x;
    std::memcpy(&x, &bits, sizeof x);
    return static_cast<double>(x);
}

}  // namespace

Kind storage_kind(Math math) {
    if (math == Math::bf16) return Kind::bf16;
    if (math == Math::fp16) return Kind::fp16;
    return compute_kind(math);
}
Kind compute_kind(Math math) { return math == Math::f64 ? Kind::f64 : Kind::f32; }

double round_to(Kind kind, double x) {
    switch (kind) {
        case Kind::f32:
            return static_cast<double>(static_cast<float>(x));
        case Kind::bf16:
            return round_bits(x, 8, -133);
        case Kind::fp16:
            return round_bits(x, 11, -24);
        default:
            return x;
    }
}

// ---- arrays --------------------------------------------------------------------------------------------

DeviceArray::DeviceArray(Kind kind, std::int64_t rows, std::int64_t width, std::int64_t gap,
                         std::int64_t lead)
    : kind_(kind),
      rows_(rows),
      width_(width),
      stride_(width + gap),
      lead_(lead),
      elements_(lead + rows * stride_) {
    const std::size_t bytes = static_cast<std::size_t>(std::max<std::int64_t>(1, elements_) * item(kind));
    bytes_ = static_cast<unsigned char*>(allocate(bytes, nullptr));
    fill(bytes_, 0xFF, bytes, nullptr);
}
DeviceArray::DeviceArray(Kind kind, const Array<double>& from, std::int64_t gap, std::int64_t lead) {
    if (!from.given()) return;
    *this = DeviceArray(kind, from.rows(), from.width(), gap, lead);
    for (std::int64_t i = 0; i < rows_; ++i) {
        for (std::int64_t k = 0; k < width_; ++k) {
            unsigned char number[8];
            encode(kind, from.row(i)[k], number);
            copy(bytes_ + (lead_ + i * stride_ + k) * item(kind), number,
                 static_cast<std::size_t>(item(kind)), nullptr);
        }
    }
}
DeviceArray& DeviceArray::operator=(DeviceArray&& other) noexcept {
    std::swap(bytes_, other.bytes_);
    kind_ = other.kind_;
    rows_ = other.rows_, width_ = other.width_, stride_ = other.stride_;
    lead_ = other.lead_, elements_ = other.elements_;
    return *this;
}
DeviceArray::~DeviceArray() { fusedrnn::cuda::free(bytes_, nullptr); }

void* DeviceArray::data() const { return bytes_ == nullptr ? nullptr : bytes_ + lead_ * item(kind_); }

bool DeviceArray::is_row(std::int64_t element) const {
    return element >= lead_ && (element - lead_) % stride_ < width_;
}

Array<double> DeviceArray::download() const {
    synchronize(nullptr);
    Array<double> to(rows_, width_);
    for (std::int64_t i = 0; i < rows_; ++i) {
        for (std::int64_t k = 0; k < width_; ++k) {
            unsigned char number[8];
            copy(number, bytes_ + (lead_ + i * stride_ + k) * item(kind_),
                 static_cast<std::size_t>(item(kind_)), nullptr);
            to.row(i)[k] = decode(kind_, number);
        }
    }
    return to;
}

bool DeviceArray::intact() const {
    for (std::int64_t i = 0; i < elements_; ++i) {
        if (is_row(i)) continue;
        for (std::int64_t j = 0; j < item(kind_); ++j) {
            if (bytes_[i * item(kind_) + j] != 0xFF) return false;
        }
    }
    return true;
}

void DeviceArray::add_to(Digest& digest) const {
    for (std::int64_t i = 0; i < rows_; ++i)
        digest.add(bytes_ + (lead_ + i * stride_) * item(kind_), width_ * item(kind_));
}

DeviceBlock::DeviceBlock(std::int64_t bytes) : data_(allocate(static_cast<std::size_t>(bytes), nullptr)) {}
DeviceBlock::~DeviceBlock() { fusedrnn::cuda::free(data_, nullptr); }

// ---- report --------------------------------------------------------------------------------------------

Tolerance tolerance(Math math) {
    switch (math) {
        case Math::ieee:
            return {5e-7, 1e-6};
        case Math::tf32:
            return {1e-3, 3e-3};
        case Math::tf32x3:
            return {5e-7, 1e-6};
        case Math::bf16:
            return {6e-3, 3e-2};
        case Math::fp16:
            return {1e-3, 3e-3};
        default:
            return {1e-15, 2e-15};
    }
}

void Report::begin(Math math, const std::string& name) {
    launch_observer = observe;
    ++cases_;
    math_ = math;
    name_ = std::string(kMathNames[static_cast<int>(math)]) + " " + name;
}

void Report::fail(const std::string& what, double error) {
    ++failures_;
    std::printf("FAILED %s: %s: %.3g\n", name_.c_str(), what.c_str(), error);
}

void Report::compare(const char* what, const DeviceArray& got, const Array<double>& want, bool gradient,
                     std::int64_t terms) {
    if (got.data() == nullptr) return;
    const Array<double> numbers = got.download();
    double difference = 0, scale = 0;
    for (std::int64_t i = 0; i < want.rows(); ++i) {
        for (std::int64_t k = 0; k < want.width(); ++k) {
            const double w = want.row(i)[k], d = numbers.row(i)[k] - w;
            difference += d * d;
            scale += w * w;
        }
    }
    const double usual = static_cast<double>(want.rows() * want.width() * terms) / 3;
    const double error = difference == 0 ? 0 : std::sqrt(difference / std::max(scale, usual));
    const Tolerance limit = tolerance(math_);
    if (!(error <= (gradient ? limit.gradient : limit.forward))) fail(what, error);
    if (!got.intact()) fail(std::string(what) + ": written outside", 0);
    double& worst = worst_[static_cast<int>(math_)][gradient];
    worst = std::max(worst, error);
}

void Report::expect_all_ran() {
    for (int i = 0; i < kMathCount; ++i) {
        const MathEntries& entries = kernel_entries(static_cast<Math>(i));
        name_ = kMathNames[i];
        const auto expect = [&](const auto& entry, const char* form = "") {
            if (entry.kernel != nullptr && launches[label(entry.name, form)][i] == 0) {
                fail(label(entry.name, form) + ": expected to run, got no launch", 0);
            }
        };
        for (int form = 0; form < kStepForms; ++form) {
            const char* name = kStepFormNames[form];
            for (const StepCell& cell : entries.cells) {
                expect(cell.forward[form], name);
                expect(cell.backward[form], name);
            }
            expect(entries.project[form], name);
            // The gradients of an LSTM's four gates are whole pieces, unless numbers have two bytes.
            const bool always_whole = storage_bytes(static_cast<Math>(i)) > 2;
            if (form > 0 || !always_whole) expect(entries.output_gradient[form], name);
        }
        for (const auto& entry : entries.gemm) expect(entry);
        for (const auto& entry : entries.sum_slices) expect(entry);
        for (const auto* entry : {&entries.gather_rows, &entries.scatter_rows, &entries.clear_padding}) {
            expect(*entry);
        }
        for (const StepCell& cell : entries.cells) expect(cell.recompute);
        // What tf32x3 does is none of its modes.
        if (static_cast<Math>(i) != Math::tf32x3 && launches["cublas"][i] == 0) {
            fail("cublas: expected to run, got no call", 0);
        }
        expect(entries.column_sums);
        expect(entries.transpose);
        expect(entries.look_up_inputs);
        expect(entries.look_up_gates);
        expect(entries.sum_lookups);
        expect(entries.gather_hidden);
        expect(entries.final_state);
        expect(entries.round);
        expect(entries.dropout);
        for (const DeviceCell& cell : device_cells()) {
            const PersistentCell* const persistent = cell.persistent[i];
            for (int form = 0; persistent != nullptr && form < kPersistentForms; ++form) {
                expect(persistent->forward[form], kPersistentFormNames[form]);
                expect(persistent->backward[form], kPersistentFormNames[form]);
            }
            const ClusterCell* const cluster = cell.cluster[i];
            for (int tiles = 0; cluster != nullptr && tiles < kMostClusterTiles; ++tiles) {
                for (int form = 0; form < kClusterForms; ++form) {
                    expect(cluster->forward[tiles][form], kClusterFormNames[form]);
                    expect(cluster->backward[tiles][form], kClusterFormNames[form]);
                }
            }
        }
    }
}

void Report::save(std::FILE* file) const {
    std::fprintf(file, "%lld %d %d\n", static_cast<long long>(turn_), cases_, failures_);
    for (const auto& of_math : worst_) std::fprintf(file, "%a %a\n", of_math[0], of_math[1]);
    for (const auto& [kernel, counts] : launches) {
        for (std::int64_t count : counts) std::fprintf(file, "%lld ", static_cast<long long>(count));
        std::fprintf(file, "%s\n", kernel.c_str());
    }
}

void Report::add(std::FILE* file) {
    long long turn = 0, counts[kMathCount];
    int cases = 0, failures = 0;
    char kernel[100];
    bool good = std::fscanf(file, "%lld %d %d", &turn, &cases, &failures) == 3;
    cases_ += cases, failures_ += failures;
    for (auto& of_math : worst_) {
        for (double& worst : of_math) {
            double error = 0;
            good &= std::fscanf(file, "%la", &error) == 1;
            worst = std::max(worst, error);
        }
    }
    while (good && std::fscanf(file, "%lld", &counts[0]) == 1) {
        for (int i = 1; i < kMathCount; ++i) good &= std::fscanf(file, "%lld", &counts[i]) == 1;
        good &= std::fscanf(file, " %99[^\n]", kernel) == 1;
        for (int i = 0; i < kMathCount; ++i) launches[kernel][i] += counts[i];
    }
    // Who counted otherwise ran other cases than those that the others left to it.
    if (!good || (turn_ != 0 && turn_ != turn)) fail("processes disagree on the cases", 0);
    turn_ = turn;
}

void Report::finish() const {
    std::printf("\n%-36s", "launches");
    for (const char* name : kMathNames) std::printf("%9s", name);
    for (const auto& [kernel, counts] : launches) {
        std::printf("\n%-36s", kernel.c_str());
        for (std::int64_t count : counts) std::printf("%9lld", static_cast<long long>(count));
    }
    for (int gradient = 0; gradient < 2; ++gradient) {
        std::printf("\n%-36s", gradient == 0 ? "largest error, forward" : "largest error, gradients");
        for (int i = 0; i < kMathCount; ++i) std::printf("%9.1e", worst_[i][gradient]);
    }
    std::printf("\n\n%d cases, %d failures\n", cases_, failures_);
}

std::string run_training(CellCase c, const emulator::Config& config) {
    c.config = config;
    try {
        return std::to_string(training_digest(c, config.seed));
    } catch (const Error& error) {
        return error.what();
    }
}

void check_blocks(const std::string& name, CellCase (*make)(const DeviceCell&, std::int64_t counter),
                  Report& report) {
    const std::int64_t usual = input_block_bytes;
    for (const DeviceCell& cell : device_cells()) {
        for (std::int64_t counter = 1; counter <= 8; ++counter) {
            if (!report.next_always()) continue;
            const CellCase c = make(cell, counter);
            report.begin(c.math, name + ", cell " + cell.name + ", " + std::to_string(counter));
            const std::uint64_t want = training_digest(c, 1);
            for (const std::int64_t steps : {1, 2}) {
                input_block_bytes = steps * c.dims.B * c.dims.H * 4 * cell.gates;
                if (training_digest(c, 1) != want) report.fail(std::to_string(steps) + " steps at a time", 0);
                input_block_bytes = usual;
            }
        }
    }
}

}  // namespace cuda_check
