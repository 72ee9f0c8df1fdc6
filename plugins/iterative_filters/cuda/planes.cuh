// Linear layouts, [N][C][H][W]: a lane has N neighbouring positions of a row, the next lane those that follow.
#pragma once

#include "common.cuh"

namespace mtu {
namespace {

constexpr int kPlaneThreads = 128;
constexpr int kWarpSize = 32;

// One channel of one entry of the batch.
template <typename T>
struct Plane {
    const T* x;
    const T* filters;   // of the first tap
    long long to_part;  // elements from a tap to the next
    int height, width;
};

// N positions from (y, x) on, filtered down; leaves the taps.
template <typename T, int N>
__device__ __forceinline__ void filter_down(const Plane<T>& plane, int y, int x, float (&taps)[3][N],
                                            float (&filtered)[N]) {
    const int rows[3] = {max(y - 1, 0), y, min(y + 1, plane.height - 1)};
    float values[3][N];
#pragma unroll
    for (int i = 0; i < 3; ++i) {
        load(plane.x + static_cast<long long>(rows[i]) * plane.width + x, values[i]);
        load(plane.filters + i * plane.to_part + static_cast<long long>(y) * plane.width + x, taps[i]);
    }
#pragma unroll
    for (int i = 0; i < N; ++i)
        filtered[i] = weighted(values[0][i], values[1][i], values[2][i], taps[0][i], taps[1][i], taps[2][i]);
}

// N divides the width. Grid: (ceil(height * width / N / kPlaneThreads), channels, batch).
template <typename T, int N, bool SHARED>
__device__ __forceinline__ void filter_planes(const Tensors<T>& tensors) {
    const int height = tensors.height, width = tensors.width, channel = blockIdx.y, entry = blockIdx.z;
    const int channels = tensors.channels, lane = threadIdx.x % kWarpSize;
    const unsigned per_row = width / N, all = height * per_row, index = blockIdx.x * kPlaneThreads + threadIdx.x;
    const unsigned at = min(index, all - 1);  // who has none of its own works on the last, for its neighbours
    const int y = at / per_row, x = at % per_row * N;
    const long long size = static_cast<long long>(height) * width;
    const long long offset = (static_cast<long long>(entry) * channels + channel) * size;
    const Plane<T> plane = {
        tensors.x + offset,
        tensors.filters + (static_cast<long long>(entry) * kParts<SHARED> * channels + channel) * size,
        channels * size, height, width};

    float taps[3][N], down[N], bias[N];
    filter_down(plane, y, x, taps, down);
    const T* here = plane.filters + static_cast<long long>(y) * width + x;
    load(here + (kParts<SHARED> - 1) * plane.to_part, bias);
    if (!SHARED) {
#pragma unroll
        for (int i = 0; i < 3; ++i) load(here + (3 + i) * plane.to_part, taps[i]);
    }

    // Beside the lane's positions are those of its neighbours; beside the warp's is nobody; beyond an edge is the edge.
    float left = __shfl_up_sync(0xffffffffu, down[N - 1], 1), right = __shfl_down_sync(0xffffffffu, down[0], 1);
    const bool first = lane == 0 && x > 0, last = lane == kWarpSize - 1 && x + N < width;
    if (first || last) {
        float unused[3][1], beside[1];
        filter_down(plane, y, first ? x - 1 : x + N, unused, beside);
        (first ? left : right) = beside[0];
    }
    if (x == 0) left = down[0];
    if (x + N == width) right = down[N - 1];
    if (index >= all) return;

    float result[N];
#pragma unroll
    for (int i = 0; i < N; ++i)
        result[i] = activated(weighted(i == 0 ? left : down[max(i - 1, 0)], down[i],
                                       i == N - 1 ? right : down[min(i + 1, N - 1)], taps[0][i], taps[1][i],
                                       taps[2][i]) +
                              bias[i]);
    store(result, tensors.filtered + offset + static_cast<long long>(y) * width + x);
}

}  // namespace
}  // namespace mtu
