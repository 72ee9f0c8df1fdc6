// The end of the second kernel: moves the blocks of detail_prev to where their best matches are.
#pragma once

#include "common.cuh"

namespace mtu {
namespace {

// Where the blocks of detail are, and how they lie in memory.
struct Detail {
    const char* from;
    char* to;
    int* displacement;
    int channels;
    int scale;
    int element;  // bytes
    int channels_last;
};

// Copies rows of `scale` elements for positions side by side, as vectors V. sources: source position in the map or -1.
template <typename V>
__device__ __forceinline__ void move_planes(const Detail& detail, const int* sources, int entry, int y0, int rows,
                                            int x0, int count, int height, int width) {
    const int lane = threadIdx.x % kWarpSize, per_block = detail.scale * detail.element / static_cast<int>(sizeof(V));
    if (lane >= count) return;
    const long long pitch = static_cast<long long>(width) * per_block;  // vectors of a row of detail
    const long long channel = pitch * height * detail.scale;
    for (int line = threadIdx.x / kWarpSize; line < rows * detail.scale; line += kWarps) {
        const int r = line / detail.scale, j = line % detail.scale, source = sources[r * kPositions + lane];
        const long long start = entry * detail.channels * channel + j * pitch;
        for (int v = 0; v < per_block; ++v) {
            V* to = reinterpret_cast<V*>(detail.to) + start + static_cast<long long>(y0 + r) * detail.scale * pitch +
                    (x0 + lane) * per_block + v;
            const V* from = reinterpret_cast<const V*>(detail.from) + start +
                            static_cast<long long>(source / width) * detail.scale * pitch + source % width * per_block +
                            v;
#pragma unroll 8
            for (int c = 0; c < detail.channels; ++c) {
                V value = {};
                if (source >= 0) value = from[c * channel];
                to[c * channel] = value;
            }
        }
    }
}

// The same for channels last, V of `per_vector` halves; pad channels become zero.
template <typename V>
__device__ __forceinline__ void move_pixels(const Detail& detail, const int* sources, int entry, int y0, int rows,
                                            int x0, int count, int height, int width) {
    constexpr int kPerVector = sizeof(V) / sizeof(Half);
    const int per_pixel = (detail.channels + 7) / 8 * 8 / kPerVector;
    const int per_block = detail.scale * per_pixel, per_line = count * per_block;
    for (int line = 0; line < rows * detail.scale; ++line) {
        const int r = line / detail.scale, j = line % detail.scale;
        for (int i = threadIdx.x; i < per_line; i += kMatchThreads) {
            const int block = i / per_block, v = i % per_block, channel = v % per_pixel * kPerVector;
            const int source = sources[r * kPositions + block];
            const long long row = static_cast<long long>(entry) * height * detail.scale + j;
            union {
                V vector;
                Half halves[kPerVector];
            } value = {};
            if (source >= 0)
                value.vector = reinterpret_cast<const V*>(
                    detail.from)[((row + static_cast<long long>(source / width) * detail.scale) * width +
                                  source % width) *
                                     per_block +
                                 v];
#pragma unroll
            for (int h = 0; h < kPerVector; ++h)
                if (channel + h >= detail.channels) value.halves[h] = 0;
            reinterpret_cast<V*>(
                detail
                    .to)[((row + static_cast<long long>(y0 + r) * detail.scale) * width + x0 + block) * per_block + v] =
                value.vector;
        }
    }
}

// Writes displacement and warped for the block's positions from the keys of their best matches.
template <typename = void>
__device__ __forceinline__ void move_blocks(const Detail& detail, const Key* keys, int* sources, int entry, int y0,
                                            int rows, int x0, int count, int height, int width, int reach) {
    const int span = 2 * reach + 1;
    for (int i = threadIdx.x; i < rows * kPositions; i += kMatchThreads) {
        const int r = i / kPositions, column = i % kPositions;
        if (column >= count) continue;
        const int index = static_cast<int>(index_of(keys[i])), y = y0 + r, x = x0 + column;
        detail.displacement[(static_cast<long long>(entry) * height + y) * width + x] = index;
        const int from_y = y + index / span - reach, from_x = x + index % span - reach;
        const bool inside = from_y >= 0 && from_y < height && from_x >= 0 && from_x < width;
        sources[i] = inside ? from_y * width + from_x : -1;
    }
    __syncthreads();
    const unsigned long long ends =
        reinterpret_cast<unsigned long long>(detail.from) | reinterpret_cast<unsigned long long>(detail.to);
    if (detail.channels_last) {
        if (ends % 16 == 0)
            move_pixels<uint4>(detail, sources, entry, y0, rows, x0, count, height, width);
        else
            move_pixels<Half>(detail, sources, entry, y0, rows, x0, count, height, width);
        return;
    }
    const unsigned long long unit = ends | static_cast<unsigned long long>(detail.scale * detail.element);
    if (unit % 16 == 0)
        move_planes<uint4>(detail, sources, entry, y0, rows, x0, count, height, width);
    else if (unit % 8 == 0)
        move_planes<uint2>(detail, sources, entry, y0, rows, x0, count, height, width);
    else if (unit % 4 == 0)
        move_planes<unsigned>(detail, sources, entry, y0, rows, x0, count, height, width);
    else
        move_planes<Half>(detail, sources, entry, y0, rows, x0, count, height, width);
}

}  // namespace
}  // namespace mtu
