// The first kernel: brings both motion maps into the layout that `match` reads.
#pragma once

#include "common.cuh"

namespace mtu {
namespace {

constexpr float kTiny = 1e-12f;

// Copies both maps into chunks of 32 bytes a position, in the order in which `match` reads them, with zeros for
// positions outside the map and channels that do not exist:
//   motion       a [batch][column of blocks][height], each [chunk][32 positions], those of the column and its pooling
//                margin; of half, the 1024 bytes of a chunk are two operands of multiply_add, 16 bytes a lane
//   motion_prev  b [batch][height], each [chunk][pitch positions], position x at reach + margin + x.
// float: each vector divided by its length. half: as it is, because rounding a normalised vector would cost the
// matching its precision; 1 / length follows the chunks of a row, for b in pairs: each with the next one's. Clears the
// keys and the counters of `match`. Grid: (max(columns, ceil(pitch / 32)), height, 2 * batch), kPrepareThreads.
template <typename T>
__device__ __forceinline__ void prepare(const T* motion, const T* motion_prev, unsigned* a, unsigned* b, Key* keys,
                                        unsigned* counters, int counter_count, int batch, int channels, int height,
                                        int width, int columns, int outputs, int margin, int reach, int pitch,
                                        int channels_last) {
    // Two chunks at a time go through shared memory.
    constexpr int kWords = kChunkBytes / 4, kElements = 2 * kChunkBytes / sizeof(T);
    constexpr int kParts = kPrepareThreads / kPositions;
    __shared__ T tile[kPositions][kElements + 4 / sizeof(T)];
    __shared__ float partial[kPositions][kParts + 1];

    const int thread = threadIdx.x, block = blockIdx.x, y = blockIdx.y, entry = blockIdx.z % batch;
    const bool is_a = static_cast<int>(blockIdx.z) < batch;
    if (block == 0 && y == 0 && blockIdx.z == 0)
        for (int i = thread; i < counter_count; i += kPrepareThreads) counters[i] = 0;
    if (is_a ? block >= columns : block * kPositions >= pitch) return;

    const int x0 = is_a ? block * outputs - margin : block * kPositions - margin - reach;
    const auto in_row = [&](int x) { return x0 + x >= 0 && x0 + x < width; };
    const int kept = is_a ? kPositions : min(kPositions, pitch - block * kPositions);
    const int chunks = (2 * channels + kElements - 1) / kElements;
    const int pixel = channels_last ? (channels + 7) / 8 * 8 : 1;  // elements from a position to the next
    const long long plane = static_cast<long long>(height) * width, line = static_cast<long long>(entry) * height + y;
    const T* row =
        (is_a ? motion : motion_prev) +
        (channels_last ? line * width * pixel : entry * plane * channels + static_cast<long long>(y) * width);
    const int out_pitch = (is_a ? kPositions : pitch) * kWords;
    unsigned* out = is_a ? a + ((static_cast<long long>(entry) * columns + block) * height + y) * row_words_a(chunks)
                         : b + line * row_words_b(chunks, pitch);
    unsigned* inverse_lengths = out + chunks * out_pitch;
    if (!is_a) out += block * kPositions * kWords;

    if (!is_a && thread < kPositions && in_row(thread)) keys[line * width + x0 + thread] = 0;
    const int position = thread / kParts, part = thread % kParts;
    float sum = 0;
    // float needs the length before it can write: the first round only sums.
    for (int round = sizeof(T) == 4 ? 0 : 1; round < 2; ++round) {
        for (int chunk = 0; chunk < chunks; chunk += 2) {
            for (int i = thread; i < kPositions * kElements; i += kPrepareThreads) {
                const int x = channels_last ? i / kElements : i % kPositions;
                const int e = channels_last ? i % kElements : i / kPositions;
                const int c = chunk * kElements / 2 + e;
                T value = 0;
                if (in_row(x) && c < channels)
                    value = channels_last ? row[static_cast<long long>(x0 + x) * pixel + c] : row[c * plane + x0 + x];
                tile[x][e] = value;
            }
            __syncthreads();
            if (round == 0 || sizeof(T) == 2)
                for (int e = part; e < kElements; e += kParts) {
                    const float value = to_float(tile[position][e]);
                    sum += value * value;
                }
            if (round == 1)
                for (int i = thread; i < 2 * kPositions * kWords; i += kPrepareThreads) {
                    const int second = i / (kPositions * kWords), at = i % (kPositions * kWords);
                    int x = at / kWords, word = at % kWords;
                    if (chunk + second >= chunks || x >= kept) continue;
                    if (is_a && sizeof(T) == 2) {
                        // Word at % 4 of lane 4 g + t, for the first or the last 16 positions: those g and g + 8.
                        const int lane = at / 4 % kWarpSize;
                        x = at / 128 * 16 + lane / 4 + at % 2 * 8;
                        word = lane % 4 * 2 + at / 2 % 2;
                    }
                    unsigned value =
                        *reinterpret_cast<const unsigned*>(&tile[x][(second * kWords + word) * 4 / sizeof(T)]);
                    if (sizeof(T) == 4) value = __float_as_uint(__uint_as_float(value) / partial[x][kParts]);
                    out[(chunk + second) * out_pitch + at] = value;
                }
            __syncthreads();
        }
        if (round == 0 || sizeof(T) == 2) {
            partial[position][part] = sum;
            __syncthreads();
            if (thread < kept) {
                float length = 0;
                for (int i = 0; i < kParts; ++i) length += partial[thread][i];
                length = fmaxf(sqrtf(length), kTiny);
                partial[thread][kParts] = length;
                const float inverse = in_row(thread) ? 1.0f / length : 0;
                if (is_a) reinterpret_cast<float*>(inverse_lengths)[thread] = inverse;
                if (!is_a) {
                    float2* pair = reinterpret_cast<float2*>(inverse_lengths) + block * kPositions + thread;
                    pair->x = inverse;
                    if (block + thread > 0) pair[-1].y = inverse;
                    if (block * kPositions + thread == pitch - 1) pair->y = 0;
                }
            }
            __syncthreads();
        }
    }
}

}  // namespace
}  // namespace mtu
