// What both kernels share: the tensors, three taps, what is written.
#pragma once

#include "../../cuda/half.cuh"

namespace mtu {
namespace {

constexpr float kSlope = 0.1f;  // of the LeakyReLU

// Those of a call. The sizes are those of x; filters has kParts<SHARED> blocks of `channels`.
template <typename T>
struct Tensors {
    const T* x;
    const T* filters;
    T* filtered;
    int channels, height, width;
};

// Blocks of filters: taps down, with taps of their own those across, the bias.
template <bool SHARED>
constexpr int kParts = SHARED ? 4 : 7;

[[maybe_unused]] __device__ __forceinline__ void store(float value, float* to) { *to = value; }
[[maybe_unused]] __device__ __forceinline__ void store(float value, Half* to) { *to = to_half(value); }

// N neighbours in memory, as 16 bytes if they are more than one.
template <typename T, int N>
__device__ __forceinline__ void load(const T* from, float (&to)[N]) {
    if constexpr (N == 1) {
        to[0] = to_float(*from);
    } else {
        union {
            uint4 bits;
            T values[N];
        } read;
        static_assert(sizeof read.values == sizeof read.bits, "");
        read.bits = *reinterpret_cast<const uint4*>(from);
#pragma unroll
        for (int i = 0; i < N; ++i) to[i] = to_float(read.values[i]);
    }
}

template <typename T, int N>
__device__ __forceinline__ void store(const float (&values)[N], T* to) {
    if constexpr (N == 1) {
        store(values[0], to);
    } else {
        union {
            uint4 bits;
            T values[N];
        } written;
#pragma unroll
        for (int i = 0; i < N; ++i) store(values[i], &written.values[i]);
        *reinterpret_cast<uint4*>(to) = written.bits;
    }
}

__device__ __forceinline__ float weighted(float before, float here, float after, float tap_before, float tap_here,
                                          float tap_after) {
    return tap_before * before + tap_here * here + tap_after * after;
}

__device__ __forceinline__ float activated(float value) { return value >= 0 ? value : kSlope * value; }

}  // namespace
}  // namespace mtu
