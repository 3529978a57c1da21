// The numbers of the math modes whose factors have 16 bits or fewer: float32 whose activations take the
// device's own exponential and reciprocal. They are within 3e-7 of what activations.h gives, thousands of times
// nearer than these modes promise, in a sixth of the instructions: in a kernel for many steps, where few warps
// share a multiprocessor, each instruction of a cell is waited for.
#pragma once

#include "device/device.h"
#include "simd/simd.h"

namespace fusedrnn::cuda {

struct Quick {
    using Scalar = float;
    float v;
    static FUSEDRNN_DEVICE Quick set(float x) { return {x}; }
};

FUSEDRNN_DEVICE Quick operator+(Quick a, Quick b) { return {(Vec<float>{a.v} + Vec<float>{b.v}).v}; }
FUSEDRNN_DEVICE Quick operator-(Quick a, Quick b) { return {(Vec<float>{a.v} - Vec<float>{b.v}).v}; }
FUSEDRNN_DEVICE Quick operator*(Quick a, Quick b) { return {(Vec<float>{a.v} * Vec<float>{b.v}).v}; }
FUSEDRNN_DEVICE Quick fma(Quick a, Quick b, Quick c) {
    return {fma(Vec<float>{a.v}, Vec<float>{b.v}, Vec<float>{c.v}).v};
}
FUSEDRNN_DEVICE Quick max(Quick a, Quick b) { return {max(Vec<float>{a.v}, Vec<float>{b.v}).v}; }
FUSEDRNN_DEVICE bool less(Quick a, Quick b) { return a.v < b.v; }
FUSEDRNN_DEVICE Quick select(bool m, Quick a, Quick b) { return m ? a : b; }

// 1 / (1 + 2^x); at the ends 2^x is 0 or infinite, and a NaN stays one.
FUSEDRNN_DEVICE Quick logistic2(Quick x) {
    return {reciprocal_approximate((Quick{1} + Quick{exp2_approximate(x.v)}).v)};
}

FUSEDRNN_DEVICE Quick sigmoid(Quick x) { return logistic2(Quick{-1.44269504f} * x); }
FUSEDRNN_DEVICE Quick tanh(Quick x) { return fma(Quick{-2}, logistic2(Quick{2.88539008f} * x), Quick{1}); }

}  // namespace fusedrnn::cuda
