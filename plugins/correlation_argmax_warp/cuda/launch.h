// What the TensorRT adapters and the tests call. Plain C++17: no CUDA header, no TensorRT header.
#pragma once

#include "../../cuda/problem.h"

namespace mtu::correlation_argmax_warp {

// Raised whenever the kernel, its workspace or what an engine serialises changes. ../__init__.py says the same; a test
// holds them together.
constexpr int32_t kKernelRevision = 1;

// One call of the op. Sizes are those of motion; detail_prev is [batch, detail_channels, scale*height, scale*width].
struct Problem {
    int32_t batch;
    int32_t motion_channels;
    int32_t height;
    int32_t width;
    int32_t detail_channels;
    int32_t max_displacement;
    int32_t pool_size;
    int32_t scale;
    Type motion_type;
    Type detail_type;
    Layout motion_layout;
    Layout detail_layout;
};

// nullptr if the kernel can do it, else the reason, a static string.
const char* check(const Problem& problem) noexcept;

// Bytes of device memory that launch() needs beside its arguments. Grows with each of the sizes. The memory may be
// uninitialised and must be aligned to 16 bytes.
std::size_t workspace_bytes(const Problem& problem) noexcept;

// Enqueues the op on `stream` (a cudaStream_t): asynchronous launches only, so it can be captured into a graph.
// motion, motion_prev, detail_prev: device memory aligned to their element. warped: as detail_prev; pad channels of
// kHwc8 become zeros. displacement: int32 [batch, height, width]. Returns 0 or the cudaError_t of this call, and leaves
// none for the next: an error that an earlier call left in the calling thread is dropped.
int launch(const Problem& problem, const void* motion, const void* motion_prev, const void* detail_prev, void* warped,
           int32_t* displacement, void* workspace, void* stream) noexcept;

}  // namespace mtu::correlation_argmax_warp
