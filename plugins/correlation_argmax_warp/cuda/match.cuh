// The second kernel: correlates, pools, finds the best displacement, and has the blocks of detail_prev moved. The cost
// volume exists 32 x 24 values at a time, in a warp's own stretch of shared memory.
//
// How `match` divides the work. A block has OUT positions of `rows_per_block` rows of the map; each of its warps has
// one dy and a window of 24 dx, and marches down the rows:
//   1. products: 32 positions of this row (OUT and the pooling margin) times the 56 positions of row + dy they can
//      reach, a banded matrix product (tensor cores for half, in fp32 for float), into shared memory;
//   2. a lane reads the products of 4 neighbouring outputs for 6 dx along their diagonals and sums POOL of them;
//   3. it adds these sums over POOL rows in registers, finds its best dx, then with 3 other lanes that of the window;
//   4. the best of all warps, as a key of cost and index, is kept in shared memory, by atomicMax.
// Blocks with other dy of the same positions meet in global memory; the last one to finish moves the detail.
//
// Equal costs stay equal: every cost is summed in the same order, and a key prefers the smaller index.
#pragma once

#include "common.cuh"
#include "move.cuh"

namespace mtu {
namespace {

constexpr int kWindow = 24;  // displacements of a warp, so it reaches 32 + 24 positions
constexpr int kColumns = kPositions + kWindow;
constexpr int kGroups = kPositions / 8;
// Products lie in shared memory as 8 rows of 32 a group; the first 8 positions reach columns 0 to 31, the next 8 to 39
// ... Rows are 40 floats apart and groups 8 * 41, so that displacement d of position p is at 41 p + d, and neither the
// writes of a warp (8 rows by 4 pairs) nor its reads (8 strips by 4 displacements) meet in a bank.
constexpr int kRowPitch = 40;
constexpr int kPlacePitch = kRowPitch + 1;
constexpr int kGroupSize = 8 * kPlacePitch;
constexpr int kProducts = kGroups * kGroupSize;
constexpr int kStrip = 4;  // neighbouring outputs of a lane
constexpr int kLaneDisplacements = kWindow / 4;
constexpr int kMaxRows = 32;  // of a block

// Blocks of `match` on a multiprocessor: two leave 168 registers to a thread, and the largest square needs more.
template <int POOL>
constexpr int kBlocksAtOnce = POOL <= 5 ? 2 : 1;

// Outputs per step for a pooling square: those of the 32 positions with a full margin, in whole strips.
template <int POOL>
constexpr int kStrips = (kPositions + 1 - POOL) / kStrip;

// Chunks of half that a warp loads before it multiplies; two are too many registers for sm_75's smaller products.
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 800
constexpr int kChunksAtOnce = 2;
#else
[[maybe_unused]] constexpr int kChunksAtOnce = 1;
#endif

#ifndef MTU_EMULATED  // tests/plugins/cuda_emulator has its own three for the CPU

// threadIdx.x, but read anew each time, so that what is made of it takes no register meanwhile.
__device__ __forceinline__ int this_thread() {
    int x;
    asm volatile("mov.u32 %0, %%tid.x;" : "=r"(x));
    return x;
}

__device__ __forceinline__ float infinity() { return __int_as_float(0x7f800000); }

// c += a * b for 16 x 16 times 16 x 8 halves. Lane 4g + t has rows g, g + 8 of a and column g of b, four entries each:
// a = {row g, row g + 8, row g, row g + 8}, two words a row; c = {(g, 2t), (g, 2t+1), (g+8, 2t), (g+8, 2t+1)}.
__device__ __forceinline__ void multiply_add(float (&c)[4], unsigned a0, unsigned a1, unsigned a2, unsigned a3,
                                             unsigned b0, unsigned b1) {
#if __CUDA_ARCH__ >= 800
    asm("mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, {%0,%1,%2,%3};"
        : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])
        : "r"(a0), "r"(a1), "r"(a2), "r"(a3), "r"(b0), "r"(b1));
#else
    asm("mma.sync.aligned.m16n8k8.row.col.f32.f16.f16.f32 {%0,%1,%2,%3}, {%4,%5}, {%6}, {%0,%1,%2,%3};"
        : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])
        : "r"(a0), "r"(a1), "r"(b0));
    asm("mma.sync.aligned.m16n8k8.row.col.f32.f16.f16.f32 {%0,%1,%2,%3}, {%4,%5}, {%6}, {%0,%1,%2,%3};"
        : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])
        : "r"(a2), "r"(a3), "r"(b1));
#endif
}

#endif

// Where a lane of a warp finds what it multiplies, in the rows to come: vectors of 32 positions of `a`, and of 56
// columns, those of `b` from the first displacement on.
struct Operands {
    const char* a;   // the row; of half, with the lane's 16 bytes
    const char* b;   // column g; of half, with the lane's 8 bytes
    int chunk_size;  // bytes of b's
    int column;      // the first one, counted from the start of the row
};

__device__ __forceinline__ uint4 load(const char* from) { return *reinterpret_cast<const uint4*>(from); }

// Keeps the products of columns 8 tile + 2 t and the next with position g of a group, in tiles from the group's first
// on.
__device__ __forceinline__ void store(float* products, int group, int tile, int lane, float left, float right) {
    float2* place =
        reinterpret_cast<float2*>(products + group * kGroupSize + (lane >> 2) * kRowPitch + tile * 8 + (lane & 3) * 2);
    *place = make_float2(left, right);
}

// The products of the 32 positions with the columns that are up to 23 further on.
[[maybe_unused]] __device__ __forceinline__ void multiply(Half, Operands& from, int chunks,
                                                          float (*warps_products)[kProducts]) {
    constexpr int kTile = 8 * kChunkBytes, kHalf = 16 * kChunkBytes;
    // 16 positions at a time: their two groups reach tiles 0 to 3 and 1 to 4.
#pragma unroll 1
    for (int upper = 0; upper < kGroups; upper += 2) {
        float c[5][4] = {};
#pragma unroll kChunksAtOnce
        for (int chunk = 0; chunk < chunks; ++chunk) {
            const uint4 u = load(from.a);
#pragma unroll
            for (int tile = 0; tile < 5; ++tile) {
                const uint2 w = *reinterpret_cast<const uint2*>(from.b + tile * kTile);
                multiply_add(c[tile], u.x, u.y, u.z, u.w, w.x, w.y);
            }
            from.a += 2 * kHalf;
            from.b += from.chunk_size;
        }
        const int lane = this_thread() % kWarpSize;
        float* products = warps_products[this_thread() / kWarpSize];
        // Behind the chunks are the lengths: 4 bytes a position where a has 16 for a lane, 8 bytes a column where b has
        // 32, and 8 t more.
        const float* lengths =
            reinterpret_cast<const float*>(from.a + (lane >> 2) * 4 - lane * 16 - upper * (kHalf / 2 - 32));
        const float2* pairs =
            reinterpret_cast<const float2*>(from.b - from.column * (kChunkBytes - 8) - (lane >> 2) * kChunkBytes +
                                            (lane & 3) * 8 - upper * (kTile - 64));
        const float scale[2] = {lengths[0], lengths[8]};
        from.a += kHalf - chunks * 2 * kHalf;
        from.b += 2 * kTile - chunks * from.chunk_size;
#pragma unroll
        for (int tile = 0; tile < 5; ++tile) {
            const float2 pair = pairs[8 * tile];
            if (tile < 4)
                store(products, upper, tile, lane, c[tile][0] * scale[0] * pair.x, c[tile][1] * scale[0] * pair.y);
            if (tile > 0)
                store(products, upper + 1, tile - 1, lane, c[tile][2] * scale[1] * pair.x,
                      c[tile][3] * scale[1] * pair.y);
        }
    }
    from.a -= 2 * kHalf;
    from.b -= 4 * kTile;
}

// The same for float, whose vectors are normalised already.
[[maybe_unused]] __device__ __forceinline__ void multiply(float, Operands& from, int chunks,
                                                          float (*warps_products)[kProducts]) {
    const int lane = this_thread() % kWarpSize;
    float* products = warps_products[this_thread() / kWarpSize];
    const char *rows = from.a + (lane >> 2) * kChunkBytes,
               *columns = from.b + (2 * (lane & 3) - (lane >> 2)) * kChunkBytes;
#pragma unroll
    for (int tile = 0; tile < kColumns / 8; ++tile) {
        float c[kGroups][2] = {};
#pragma unroll 1
        for (int chunk = 0; chunk < chunks; ++chunk) {
#pragma unroll 1
            for (int byte = 0; byte < kChunkBytes; byte += 16) {
                const char* place = columns + chunk * from.chunk_size + byte + tile * 8 * kChunkBytes;
                const uint4 left = load(place), right = load(place + kChunkBytes);
#pragma unroll
                for (int group = 0; group < kGroups; ++group) {
                    if (tile < group || tile > group + 3) continue;
                    const uint4 row = load(rows + (chunk * kPositions + group * 8) * kChunkBytes + byte);
                    c[group][0] += __uint_as_float(row.x) * __uint_as_float(left.x);
                    c[group][1] += __uint_as_float(row.x) * __uint_as_float(right.x);
                    c[group][0] += __uint_as_float(row.y) * __uint_as_float(left.y);
                    c[group][1] += __uint_as_float(row.y) * __uint_as_float(right.y);
                    c[group][0] += __uint_as_float(row.z) * __uint_as_float(left.z);
                    c[group][1] += __uint_as_float(row.z) * __uint_as_float(right.z);
                    c[group][0] += __uint_as_float(row.w) * __uint_as_float(left.w);
                    c[group][1] += __uint_as_float(row.w) * __uint_as_float(right.w);
                }
            }
        }
#pragma unroll
        for (int group = 0; group < kGroups; ++group)
            if (tile >= group && tile <= group + 3)
                store(products, group, tile - group, lane, c[group][0], c[group][1]);
    }
}

// Sums of POOL neighbours along the diagonal of one displacement, for 4 outputs. `place`: where the first one has it.
template <int POOL>
__device__ __forceinline__ void pool_row(const float* place, float (&sums)[kStrip]) {
    float v[kStrip + POOL - 1];
#pragma unroll
    for (int i = 0; i < kStrip + POOL - 1; ++i) v[i] = place[i * kPlacePitch];
    if constexpr (POOL == 5) {
        const float inner = v[3] + v[4], early = inner + (v[1] + v[2]), late = inner + (v[5] + v[6]);
        sums[0] = v[0] + early;
        sums[1] = early + v[5];
        sums[2] = v[2] + late;
        sums[3] = late + v[7];
    } else {
#pragma unroll
        for (int k = 0; k < kStrip; ++k) {
            sums[k] = v[k];
#pragma unroll
            for (int i = 1; i < POOL; ++i) sums[k] += v[k + i];
        }
    }
}

// Adds a row to the sums of POOL rows: chain[i] has those of the last POOL - 1 - i. Returns the complete sum.
template <int POOL>
__device__ __forceinline__ float pool_column(float (&chain)[POOL], float sum) {
    const float total = chain[0] + sum;
#pragma unroll
    for (int i = 0; i + 2 < POOL; ++i) chain[i] = chain[i + 1] + sum;
    if (POOL > 1) chain[POOL - 2] = sum;
    return total;
}

// Keeps the better of two candidates; of equal ones the smaller displacement.
__device__ __forceinline__ void keep_better(float& cost, int& displacement, float other_cost, int other_displacement) {
    if (other_cost > cost || (other_cost == cost && other_displacement < displacement)) {
        cost = other_cost;
        displacement = other_displacement;
    }
}

// Finds the best displacement of every position and moves the detail.
// Grid: (ceil(width / (4 * kStrips<POOL>)), ceil(height / rows_per_block), batch * groups), kMatchThreads.
template <typename T, int POOL>
__device__ __forceinline__ void match(const char* a, const char* b, Key* keys, unsigned* counters, const Detail& detail,
                                      int chunks, int height, int width, int pitch, int reach, int rows_per_block,
                                      int groups) {
    static_assert(POOL % 2 == 1 && POOL <= 7, "");
    constexpr int kOut = kStrips<POOL> * kStrip, kMargin = POOL / 2;
    __shared__ __align__(16) float products[kWarps][kProducts];
    __shared__ Key best[kMaxRows * kPositions];
    __shared__ int last;

    const int lane = threadIdx.x % kWarpSize, warp = threadIdx.x / kWarpSize;
    const int x0 = blockIdx.x * kOut, y0 = blockIdx.y * rows_per_block;
    const int entry = blockIdx.z / groups, group = blockIdx.z % groups;
    const int rows = min(rows_per_block, height - y0), count = min(kOut, width - x0);
    const long long plane = static_cast<long long>(height) * width;
    const int span = 2 * reach + 1, windows = (span + kWindow - 1) / kWindow;
    const int task = group * kWarps + warp;

    for (int i = threadIdx.x; i < kMaxRows * kPositions; i += kMatchThreads) best[i] = 0;
    __syncthreads();

    if (task < span * windows) {
        const int dy = task / windows - reach, window = task % windows * kWindow;
        // Row y0 - kMargin of a and that row + dy of b: outside the map at first, perhaps, and then not read.
        const int g = lane >> 2, t = lane & 3;
        const long long row_a = (static_cast<long long>(entry) * gridDim.x + blockIdx.x) * height + y0 - kMargin;
        const long long row_b = static_cast<long long>(entry) * height + y0 - kMargin + dy;
        Operands from;
        from.column = x0 + window;
        from.chunk_size = pitch * kChunkBytes;
        from.a = a + row_a * row_words_a(chunks) * 4 + (sizeof(T) == 2 ? lane * 16 : 0);
        from.b =
            b + row_b * row_words_b(chunks, pitch) * 4 + (from.column + g) * kChunkBytes + (sizeof(T) == 2 ? t * 8 : 0);

        float chain[kStrip][kLaneDisplacements][POOL] = {};  // the last entry stays 0 and takes no register
        for (int row = y0 - kMargin; row < y0 + rows + kMargin; ++row) {
            const int other = row + dy;
            float cost[kStrip];
            int displacement[kStrip];
#pragma unroll
            for (int k = 0; k < kStrip; ++k) {
                cost[k] = -infinity();
                displacement[k] = 0;
            }
            const auto pool = [&](auto read) {
                const int allowed = span - window - this_thread() % 4;  // displacements of this lane
#pragma unroll
                for (int m = 0; m < kLaneDisplacements; ++m) {
                    float sums[kStrip] = {};
                    read(m, sums);
#pragma unroll
                    for (int k = 0; k < kStrip; ++k) {
                        const float total = pool_column<POOL>(chain[k][m], sums[k]);
                        if (total > cost[k] && 4 * m < allowed) {
                            cost[k] = total;
                            displacement[k] = 4 * m;
                        }
                    }
                }
            };
            if (row >= 0 && row < height && other >= 0 && other < height) {
                multiply(T(), from, chunks, products);
                __syncwarp();
                const int thread = this_thread(), first = min(thread % kWarpSize / 4, kStrips<POOL> - 1) * kStrip;
                const float* place = products[thread / kWarpSize] + first * kPlacePitch + thread % 4;
                pool([&](int m, float (&sums)[kStrip]) { pool_row<POOL>(place + 4 * m, sums); });
                __syncwarp();
            } else {
                pool([](int, float (&)[kStrip]) {});
            }
            from.a += row_words_a(chunks) * 4;
            from.b += row_words_b(chunks, pitch) * 4;
            if (row - kMargin < y0) continue;
            // The four lanes of a strip have its displacements by quarters: each ends with one output's best.
            const int quarter = this_thread() % 4;
#pragma unroll
            for (int k = 0; k < kStrip; ++k) displacement[k] += quarter;
            const bool odd = quarter & 1, high = quarter & 2;
#pragma unroll
            for (int k = 0; k < 2; ++k) {
                const float sent = odd ? cost[k] : cost[k + 2];
                const int sent_displacement = odd ? displacement[k] : displacement[k + 2];
                if (odd) {
                    cost[k] = cost[k + 2];
                    displacement[k] = displacement[k + 2];
                }
                keep_better(cost[k], displacement[k], __shfl_xor_sync(0xffffffffu, sent, 1),
                            __shfl_xor_sync(0xffffffffu, sent_displacement, 1));
            }
            const float sent = high ? cost[0] : cost[1];
            const int sent_displacement = high ? displacement[0] : displacement[1];
            if (high) {
                cost[0] = cost[1];
                displacement[0] = displacement[1];
            }
            keep_better(cost[0], displacement[0], __shfl_xor_sync(0xffffffffu, sent, 2),
                        __shfl_xor_sync(0xffffffffu, sent_displacement, 2));
            const int column = this_thread() % kWarpSize / 4 * kStrip + (odd ? 2 : 0) + (high ? 1 : 0);
            if (column < count)
                atomicMax(&best[(row - kMargin - y0) * kPositions + column],
                          make_key(cost[0], (dy + reach) * span + window + displacement[0]));
        }
    }
    __syncthreads();

    if (groups > 1) {
        Key* meeting = keys + entry * plane + static_cast<long long>(y0) * width + x0;
        for (int i = threadIdx.x; i < rows * kPositions; i += kMatchThreads)
            if (i % kPositions < count)
                atomicMax(&meeting[static_cast<long long>(i / kPositions) * width + i % kPositions], best[i]);
        __threadfence();
        __syncthreads();
        if (threadIdx.x == 0)
            last = atomicAdd(&counters[(entry * gridDim.y + blockIdx.y) * gridDim.x + blockIdx.x], 1u) + 1 ==
                   static_cast<unsigned>(groups);
        __syncthreads();
        if (!last) return;
        __threadfence();
        for (int i = threadIdx.x; i < rows * kPositions; i += kMatchThreads)
            if (i % kPositions < count)
                best[i] = *const_cast<volatile Key*>(
                    &meeting[static_cast<long long>(i / kPositions) * width + i % kPositions]);
        __syncthreads();
    }
    move_blocks(detail, best, reinterpret_cast<int*>(products), entry, y0, rows, x0, count, height, width, reach);
}

}  // namespace
}  // namespace mtu
