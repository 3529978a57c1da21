// Products by NVIDIA's cuBLAS, where the running program finds it; nothing of it is needed to build. The order
// in which it is looked for: what FUSEDRNN_CUBLAS says (0: none, or a file), what the process has loaded,
// the files that were offered, what the system's loader knows.
#pragma once

#include <cstdint>
#include <mutex>
#include <string>
#include <vector>

#include "problem.h"
#include "runtime.h"

namespace fusedrnn::cuda {

struct Product;
struct CublasLibrary;

// Files to look at, best first; without effect once the library was looked for.
void offer_cublas(std::vector<std::string> files);
// In place of FUSEDRNN_CUBLAS, and looks again. For tests.
void choose_cublas(const std::string& choice);
// "13.1.0 (file)", or "none (reason)".
std::string describe_cublas();

// The handle of a device. Its workspace is that of the call, so that streams share nothing and a call that is
// captured needs no memory of its own.
class Cublas {
  public:
    // Of the current device; null where our own kernels have to do.
    static Cublas* of_current_device();
    Cublas(const CublasLibrary& library, void* handle, int architecture);

    bool takes(Math math, const Product& product) const;
    std::int64_t workspace_bytes() const { return workspace_bytes_; }
    // C = A B, or added to C; without the bias.
    void multiply(Math math, const Product& product, bool add, Stream stream, void* workspace);

  private:
    void check(int status, const char* place) const;

    const CublasLibrary& library_;
    void* handle_;
    std::int64_t workspace_bytes_;
    std::mutex mutex_;  // a stream and a product are given to the handle one after the other
};

}  // namespace fusedrnn::cuda
