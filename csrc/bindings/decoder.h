// What decoders with attention are made of on their way through the bindings.
#pragma once

#include <algorithm>
#include <cstdint>
#include <memory>
#include <string>
#include <type_traits>
#include <vector>

#include "bindings/arrays.h"
#include "bindings/buffer.h"
#include "bindings/timetable.h"
#include "cpu/partition.h"
#include "layers/layer_table.h"
#include "sequence/decoder_table.h"

namespace fusedrnn {

constexpr int kDecoderParams = 14, kDecoderWeightIh = 4;

// The arrays of a decoder's parameters, or of their gradients.
struct ParamArrays {
    Array of[kDecoderParams];

    template <class T>
    DecoderParams<T> view() const {
        const auto at = [&](int i) { return of[i].given() ? const_cast<T*>(of[i].data<T>()) : nullptr; };
        return {at(0), at(1), at(2), at(3),  at(4),  at(5),  at(6),
                at(7), at(8), at(9), at(10), at(11), at(12), at(13)};
    }
};

// Those whose products take bfloat16 are of float32.
template <class T>
const DecoderKernels<T>& decoder_kernels(Compute compute) {
    if constexpr (std::is_same_v<T, float>) {
        if (compute != Compute::kFloat32) return *bf16_kernels(compute).decoder;
    }
    return *layer_table<T>().sequence->decoder;
}

// A decoder's weights in panels, beside those they were made of.
struct PackedDecoder {
    const RecurrentCell* cell;
    DType dtype;
    DecoderSizes sizes{};
    ParamArrays params;
    AlignedBuffer weights;
    std::shared_ptr<AlignedBuffer> columns;  // for backward, from the first on
    Compute compute = Compute::kFloat32;

    template <class T>
    const DecoderKernels<T>& kernels() const {
        return decoder_kernels<T>(compute);
    }
    template <class T>
    DecoderArgs<T> args(const DecoderSizes& d) const {
        DecoderArgs<T> args{};
        args.sizes = d;
        args.params = params.view<const T>();
        args.weights = weights.data();
        return args;
    }
};

// A memory with its keys.
struct Prepared {
    std::shared_ptr<PackedDecoder> decoder;
    DecoderSizes sizes{};
    std::int64_t batch = 0;
    std::vector<std::int64_t> lengths, first;
    AlignedBuffer keys;
    AlignedBuffer projections;  // of a search

    double step_work() const {
        const DecoderSizes& d = sizes;
        const double G = decoder->cell->gates;
        const auto product = [](std::int64_t a, std::int64_t b) {
            return static_cast<double>(a) * static_cast<double>(b);
        };
        return G * product(d.H, d.I + d.fed() + d.H) + (d.current ? product(d.H, d.M + d.H) : 0) +
               product(d.A, d.H + (12 + d.features()) * d.S) + product(d.M + d.filters * d.width, d.S);
    }
    std::int64_t nbytes() const { return decoder->weights.bytes() + keys.bytes() + projections.bytes(); }
};

// A head and the inputs of its tokens: what draws those of scheduled sampling, and continues the hypotheses of a search.
struct DecoderSampler {
    DType dtype;
    Array table;
    std::int64_t classes, units;  // V, H
    double probability;
    std::uint64_t seed, stream;
    Compute compute;
    AlignedBuffer head;
};

inline void check_sampler(const std::string& name, const DecoderSampler& sampling, const Prepared& p) {
    const auto refuse = [&](const std::string& expected, const std::string& got) {
        throw py::value_error(name + ": expected " + expected + ", got " + got);
    };
    if (sampling.dtype != p.decoder->dtype) refuse("one of the decoder's dtype", "one of another");
    if (sampling.compute != p.decoder->compute) refuse("one of the decoder's compute", "one of another");
    if (sampling.units != p.sizes.H)
        refuse("a head of the decoder's H = " + std::to_string(p.sizes.H), std::to_string(sampling.units));
    if (sampling.table.size(1) != p.sizes.I) {
        refuse("a table of the decoder's I = " + std::to_string(p.sizes.I),
               std::to_string(sampling.table.size(1)));
    }
}

struct DecoderTape {
    std::shared_ptr<Prepared> prepared;
    Timetable timetable;
    DecoderSizes sizes;
    std::vector<std::int64_t> memory_first, memory_lengths;
    Array x;
    bool own_x;  // a copy, into which a sampling has written
    AlignedBuffer tape;

    template <class T>
    DecoderArgs<T> args() const {
        DecoderArgs<T> args = prepared->decoder->args<T>(sizes);
        args.schedule = timetable.view(nullptr);
        args.keeps = true;
        args.memory_first = memory_first.data();
        args.memory_lengths = memory_lengths.data();
        args.x = x.data<T>();
        args.keys = prepared->keys.data();
        args.projections = prepared->projections.data();
        args.tape = tape.data();
        return args;
    }
    std::int64_t nbytes() const {
        return prepared->nbytes() + tape.bytes() + timetable.nbytes() + own_x * x.size() * x.itemsize();
    }
};

inline int members_for(double work, std::int64_t batch) {
    return static_cast<int>(
        std::min<std::int64_t>(dense_threads(2 * work), std::max<std::int64_t>(batch, 1)));
}

// Beyond any memory before sizes are multiplied.
inline void check_sizes(const DecoderSizes& d, std::int64_t gates) {
    const std::int64_t widths =
        16 * gates * (d.I + d.M + d.A + d.H + checked_product({d.S + 1, d.features() + 1}) + d.width + 64);
    checked_product({d.T + 1, d.B + 1, widths, 8});
    checked_product({d.S + 1, d.B + 1, widths, 8});
    checked_product({d.H + 64, widths, 16});
    checked_product({d.A + 64, widths, 16});
}

// The entries that make them, in decoder_prepare.cpp, and that of a search, in decoder_search.cpp.
void bind_decoder_prepare(py::module_& m);
void bind_decoder_search(py::module_& m);

}  // namespace fusedrnn
