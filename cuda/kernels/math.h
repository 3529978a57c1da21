// What a math mode is made of: its types, and the product of fragments.
//
// A piece is 16 bytes of one row, so 16 / sizeof(T) neighbours along K; a chunk is the four pieces that the
// four lanes of a quad hold of a row. With g = lane / 4 and t = lane % 4, a lane loads piece t of row g, and
// the words of that piece serve as the registers of the fragments in an order that is the same for both
// factors. The sum over K does not mind which of its terms an instruction calls the first, so rows go from
// memory into fragments as they are.
#pragma once

#include "device/device.h"
#include "kernels/quick.h"
#include "problem.h"
#include "simd/simd.h"

namespace fusedrnn::cuda {

// T and C as in problem.h, V: what cells are computed in.
template <Math kMath>
struct MathTraits {
    using T = float;
    using C = float;
    using V = std::conditional_t<kMath == Math::tf32, Quick, Vec<float>>;
    static constexpr bool kTensor = kMath != Math::ieee;
};
template <>
struct MathTraits<Math::bf16> {
    using T = bf16;
    using C = float;
    using V = Quick;
    static constexpr bool kTensor = true;
};
template <>
struct MathTraits<Math::fp16> {
    using T = fp16;
    using C = float;
    using V = Quick;
    static constexpr bool kTensor = true;
};
template <>
struct MathTraits<Math::f64> {
    using T = double;
    using C = double;
    using V = Vec<double>;
    static constexpr bool kTensor = false;
};

template <class T>
inline constexpr int kPiece = 16 / static_cast<int>(sizeof(T));
template <class T>
inline constexpr int kChunk = 4 * kPiece<T>;

FUSEDRNN_DEVICE float widen(float x) { return x; }
FUSEDRNN_DEVICE float widen(bf16 x) { return to_float(x); }
FUSEDRNN_DEVICE float widen(fp16 x) { return to_float(x); }
FUSEDRNN_DEVICE double widen(double x) { return x; }
template <class T>
FUSEDRNN_DEVICE T narrow(float x) {
    return from_float<T>(x);
}
template <class T>
FUSEDRNN_DEVICE T narrow(double x) {
    return x;
}

template <class C>
FUSEDRNN_DEVICE C fused(C a, C b, C c) {
    return fma(Vec<C>{a}, Vec<C>{b}, Vec<C>{c}).v;
}

template <class T>
union Piece {
    Vector16 vector;
    T element[kPiece<T>];
};

// Elements k and following of a row of `size`; a null row is zero. kVector: the row starts at a multiple of
// 16 bytes, and so does its end.
template <bool kVector, class T>
FUSEDRNN_DEVICE Piece<T> load_piece(const T* row, int k, int size) {
    Piece<T> piece;
    piece.vector = Vector16{};
    if constexpr (kVector) {
        if (row != nullptr && k < size) piece.vector = load16_constant(row + k);
    } else {
        FUSEDRNN_UNROLL
        for (int i = 0; i < kPiece<T>; ++i) {
            if (row != nullptr && k + i < size) piece.element[i] = load_constant(row + k + i);
        }
    }
    return piece;
}

// A piece as the tensor cores take it.
template <Math kMath>
struct Factor {
    unsigned word[4];
};
template <>
struct Factor<Math::tf32x3> {
    unsigned word[4], rest[4];  // word + rest has 22 significant bits of the number
};

template <Math kMath, class T>
FUSEDRNN_DEVICE Factor<kMath> make_factor(const Piece<T>& piece) {
    Factor<kMath> f;
    FUSEDRNN_UNROLL
    for (int i = 0; i < 4; ++i) {
        if constexpr (sizeof(T) == 2) {
            f.word[i] = piece.vector.word[i];
        } else {
            f.word[i] = round_tf32(piece.element[i]);
            if constexpr (kMath == Math::tf32x3) {
                f.rest[i] = round_tf32(piece.element[i] - as_float(f.word[i]));
            }
        }
    }
    return f;
}

// What of an element takes part in a product; it is handed over so, and no reader has to round.
template <Math kMath, class T>
FUSEDRNN_DEVICE T exchanged(T x) {
    if constexpr (kMath == Math::tf32) {
        return as_float(round_tf32(x));
    } else {
        return x;
    }
}

// Of what was exchanged().
template <Math kMath, class T>
FUSEDRNN_DEVICE Factor<kMath> row_factor(const Piece<T>& piece) {
    if constexpr (kMath == Math::tf32x3) {
        return make_factor<kMath>(piece);
    } else {
        return {{piece.vector.word[0], piece.vector.word[1], piece.vector.word[2], piece.vector.word[3]}};
    }
}

template <Math kMath>
FUSEDRNN_DEVICE void mma(float (&c)[4], const unsigned (&a)[4], const unsigned (&b)[2]) {
    if constexpr (kMath == Math::bf16) {
        mma_bf16(c, a, b);
    } else if constexpr (kMath == Math::fp16) {
        mma_f16(c, a, b);
    } else {
        mma_tf32(c, a, b);
    }
}

template <Math kMath>
FUSEDRNN_DEVICE void multiply_words(float (&c)[4], const unsigned (&low)[4], const unsigned (&high)[4],
                                    const unsigned (&b)[4]) {
    FUSEDRNN_UNROLL
    for (int i = 0; i < 4; i += 2) {
        mma<kMath>(c, {low[i], high[i], low[i + 1], high[i + 1]}, {b[i], b[i + 1]});
    }
}

// c (16, 8) += a b over a chunk of K: `low` has rows 0..7 of a, `high` rows 8..15, `b` the columns of b; c is
// laid out as the result of an mma.
template <Math kMath>
FUSEDRNN_DEVICE void multiply(float (&c)[4], const Factor<kMath>& low, const Factor<kMath>& high,
                              const Factor<kMath>& b) {
    if constexpr (kMath == Math::tf32x3) {
        multiply_words<kMath>(c, low.rest, high.rest, b.word);
        multiply_words<kMath>(c, low.word, high.word, b.rest);
    }
    multiply_words<kMath>(c, low.word, high.word, b.word);
}

}  // namespace fusedrnn::cuda
