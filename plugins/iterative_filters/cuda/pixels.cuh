// Channels last, [N][H][W][C rounded up to 8] of half: a lane has 8 channels of a position. What it filtered down goes
// through shared memory to the positions beside it.
#pragma once

#include "common.cuh"

namespace mtu {
namespace {

constexpr int kPixelThreads = 256;
constexpr int kLanesOfPixel = 8;  // 64 channels, 128 bytes
constexpr int kPixelsOfBlock = kPixelThreads / kLanesOfPixel;
constexpr int kPixelsWritten = kPixelsOfBlock - 2;  // the first and the last are there for their neighbours
constexpr int kChannels = 8;

// 8 channels at `from`, of which `count` exist.
template <bool VECTORS>
__device__ __forceinline__ void load_pixel(const Half* from, int count, float (&to)[kChannels]) {
    if constexpr (VECTORS) {
        load(from, to);
    } else {
#pragma unroll
        for (int i = 0; i < kChannels; ++i) to[i] = i < count ? to_float(from[i]) : 0;
    }
}

// VECTORS: channels are a multiple of 8, all tensors aligned to 16 bytes.
// Grid: (ceil(width / kPixelsWritten) * ceil(channels / 64), height, batch).
template <bool VECTORS, bool SHARED>
__device__ __forceinline__ void filter_pixels(const Tensors<Half>& tensors,
                                              float (&shared)[kChannels][kPixelThreads]) {
    const int channels = tensors.channels, height = tensors.height, width = tensors.width, thread = threadIdx.x;
    const int groups = (channels + kLanesOfPixel * kChannels - 1) / (kLanesOfPixel * kChannels);
    const int channel = (blockIdx.x % groups * kLanesOfPixel + thread % kLanesOfPixel) * kChannels;
    const int pixel = thread / kLanesOfPixel, y = blockIdx.y;
    const int unclamped = static_cast<int>(blockIdx.x / groups) * kPixelsWritten + pixel - 1;
    const int x = min(max(unclamped, 0), width - 1);  // beyond an edge is the edge
    const int count = channels - channel;
    const int pitch = (channels + 7) / 8 * 8, filters_pitch = (kParts<SHARED> * channels + 7) / 8 * 8;
    const long long line = static_cast<long long>(blockIdx.z) * height, at = (line + y) * width + x;
    const Half* const filters = tensors.filters + at * filters_pitch + channel;

    float taps[3][kChannels] = {}, down[kChannels] = {};
    if (count > 0) {
        const int rows[3] = {max(y - 1, 0), y, min(y + 1, height - 1)};
        float values[3][kChannels];
#pragma unroll
        for (int i = 0; i < 3; ++i) {
            load_pixel<VECTORS>(tensors.x + ((line + rows[i]) * width + x) * pitch + channel, count, values[i]);
            load_pixel<VECTORS>(filters + static_cast<long long>(i) * channels, count, taps[i]);
        }
#pragma unroll
        for (int i = 0; i < kChannels; ++i)
            down[i] = weighted(values[0][i], values[1][i], values[2][i], taps[0][i], taps[1][i], taps[2][i]);
    }
#pragma unroll
    for (int i = 0; i < kChannels; ++i) shared[i][thread] = down[i];
    __syncthreads();
    if (count <= 0 || pixel == 0 || pixel == kPixelsOfBlock - 1 || unclamped >= width) return;

    if (!SHARED) {
#pragma unroll
        for (int i = 0; i < 3; ++i)
            load_pixel<VECTORS>(filters + static_cast<long long>(3 + i) * channels, count, taps[i]);
    }
    float bias[kChannels], result[kChannels];
    load_pixel<VECTORS>(filters + static_cast<long long>(kParts<SHARED> - 1) * channels, count, bias);
#pragma unroll
    for (int i = 0; i < kChannels; ++i) {
        const float left = shared[i][thread - kLanesOfPixel], right = shared[i][thread + kLanesOfPixel];
        result[i] = activated(weighted(left, down[i], right, taps[0][i], taps[1][i], taps[2][i]) + bias[i]);
    }
    Half* const to = tensors.filtered + at * pitch + channel;
    if constexpr (VECTORS) {
        store(result, to);
    } else {
#pragma unroll
        for (int i = 0; i < kChannels; ++i) to[i] = to_half(result[i]);  // 0 where there is no channel
    }
}

}  // namespace
}  // namespace mtu
