// What both kernels share: sizes, the layout that one writes and the other reads, the key of a match.
#pragma once

#include "../../cuda/half.cuh"

namespace mtu {
namespace {

typedef unsigned long long Key;

constexpr int kWarpSize = 32;
constexpr int kWarps = 6;
constexpr int kMatchThreads = kWarps * kWarpSize;
constexpr int kPrepareThreads = 256;
constexpr int kChunkBytes = 32;  // of the channels of a position: 16 of half, 8 of float
constexpr int kPositions = 32;   // of a row, per step: rows of the banded product

// Words of a row of a and of b, whole lines of 128 bytes, as are its chunks; see `prepare`.
__device__ __forceinline__ int row_words_a(int chunks) { return kPositions * (chunks * kChunkBytes / 4 + 1); }
__device__ __forceinline__ int row_words_b(int chunks, int pitch) {
    return (pitch * (chunks * kChunkBytes / 4 + 2) + 31) / 32 * 32;
}

// Larger for the larger cost, then for the smaller index; never 0.
__device__ __forceinline__ Key make_key(float cost, unsigned index) {
    const unsigned bits = __float_as_uint(cost + 0.0f);  // -0 becomes 0
    const unsigned ordered = bits & 0x80000000u ? ~bits : bits | 0x80000000u;
    return static_cast<Key>(ordered) << 32 | (~index & 0xffffffffu);
}

__device__ __forceinline__ unsigned index_of(Key key) { return ~static_cast<unsigned>(key); }

}  // namespace
}  // namespace mtu
