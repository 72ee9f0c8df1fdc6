// What the TensorRT adapters and the tests call. Plain C++17: no CUDA header, no TensorRT header.
#pragma once

#include "../../cuda/problem.h"

namespace mtu::iterative_filters {

// Raised whenever the kernel or what an engine serialises changes. ../__init__.py says the same; a test holds them
// together.
constexpr int32_t kKernelRevision = 1;

// One call of the op. Sizes are those of x; all three tensors have one type and one layout.
struct Problem {
    int32_t batch;
    int32_t channels;
    int32_t height;
    int32_t width;
    int32_t shared_taps;
    Type type;
    Layout layout;
};

// nullptr if the kernel can do it, else the reason, a static string.
const char* check(const Problem& problem) noexcept;

// Enqueues the op on `stream` (a cudaStream_t): one asynchronous launch, so it can be captured into a graph. x, filters
// and filtered are device memory aligned to its element, filtered apart from the others; pad channels of kHwc8 are not
// read, and written as zeros. Returns 0 or the cudaError_t of this call, and leaves none for the next: an error that an
// earlier call left in the calling thread is dropped.
int launch(const Problem& problem, const void* x, const void* filters, void* filtered, void* stream) noexcept;

}  // namespace mtu::iterative_filters
