// The host side of kernel.cu for C++: checks, workspace, launches. cuda_op.py is the same in Python; a test holds both
// together.

#include <atomic>

#include "../../cuda/start.h"
#include "kernel.cu"
#include "launch.h"

MTU_PREPARE(mtu_prepare_float, float)
MTU_PREPARE(mtu_prepare_half, mtu::Half)
MTU_MATCH(mtu_match_float_1, float, 1)
MTU_MATCH(mtu_match_float_3, float, 3)
MTU_MATCH(mtu_match_float_5, float, 5)
MTU_MATCH(mtu_match_float_7, float, 7)
MTU_MATCH(mtu_match_half_1, mtu::Half, 1)
MTU_MATCH(mtu_match_half_3, mtu::Half, 3)
MTU_MATCH(mtu_match_half_5, mtu::Half, 5)
MTU_MATCH(mtu_match_half_7, mtu::Half, 7)

namespace mtu::correlation_argmax_warp {
namespace {

using MatchKernel = decltype(&mtu_match_float_1);
constexpr MatchKernel kMatchKernels[2][4] = {
    {mtu_match_float_1, mtu_match_float_3, mtu_match_float_5, mtu_match_float_7},
    {mtu_match_half_1, mtu_match_half_3, mtu_match_half_5, mtu_match_half_7},
};
constexpr int kOutputs[4] = {kStrips<1> * kStrip, kStrips<3> * kStrip, kStrips<5> * kStrip, kStrips<7> * kStrip};
constexpr int kMinRows = 4;

std::size_t aligned(std::int64_t bytes) { return static_cast<std::size_t>(divide_up(bytes, 256) * 256); }

struct Plan {
    std::int64_t chunks, columns, groups, pitch;  // of a position's channels; blocks side by side; blocks that share
                                                  // positions; positions of a row of b
    std::size_t sizes[4];                         // bytes of a, b, keys and counters; multiples of 256
};

Plan plan(const Problem& p) {
    Plan result;
    const std::int64_t span = 2 * p.max_displacement + 1, windows = divide_up(span, kWindow);
    const std::int64_t outputs = kOutputs[p.pool_size / 2], lines = std::int64_t{p.batch} * p.height;
    result.chunks = divide_up(p.motion_channels, kChunkBytes / (p.motion_type == Type::kHalf ? 2 : 4));
    result.columns = divide_up(p.width, outputs);
    result.groups = divide_up(span * windows, kWarps);
    result.pitch = (result.columns - 1) * outputs + windows * kWindow + kPositions;
    result.sizes[0] = aligned(lines * result.columns * kPositions * (result.chunks * kChunkBytes + 4));
    result.sizes[1] = aligned(lines * divide_up(result.pitch * (result.chunks * kChunkBytes + 8), 128) * 128);
    result.sizes[2] = aligned(lines * p.width * 8);
    result.sizes[3] = aligned(p.batch * result.columns * divide_up(p.height, kMinRows) * 4);
    return result;
}

// Rows of the map for each block: enough blocks to fill the GPU, few rows done twice.
int rows_per_block(const Problem& p, const Plan& plan, int multiprocessors) {
    const std::int64_t at_once = static_cast<std::int64_t>(multiprocessors) * (p.pool_size > 5 ? 1 : 2);
    std::int64_t best_cost = 0;
    int best = kMaxRows;
    for (int rows = kMaxRows; rows >= kMinRows; --rows) {
        const std::int64_t blocks = plan.columns * divide_up(p.height, rows) * p.batch * plan.groups;
        const std::int64_t cost = divide_up(blocks, at_once) * ((rows < p.height ? rows : p.height) + p.pool_size - 1);
        if (rows == kMaxRows || cost < best_cost) {
            best_cost = cost;
            best = rows;
        }
    }
    return best;
}

// Of the current device, at least 1, into `count`. A failed query's code goes back: by 0 blocks nothing can be divided.
cudaError_t multiprocessors(int& count) {
    // By device; 0 is not asked yet.
    static std::atomic<int> known[64];
    int device = 0;
    if (const cudaError_t status = cudaGetDevice(&device)) return status;
    if (device < 64 && (count = known[device].load(std::memory_order_relaxed)) > 0) return cudaSuccess;
    if (const cudaError_t status = cudaDeviceGetAttribute(&count, cudaDevAttrMultiProcessorCount, device))
        return status;
    if (count < 1) return cudaErrorUnknown;
    if (device < 64) known[device].store(count, std::memory_order_relaxed);
    return cudaSuccess;
}

}  // namespace

const char* check(const Problem& p) noexcept {
    if (p.batch < 1 || p.motion_channels < 1 || p.height < 1 || p.width < 1 || p.detail_channels < 1)
        return "batch, channels, height and width must be at least 1";
    if (p.max_displacement < 1 || p.max_displacement > 20) return "max_displacement must be from 1 to 20";
    if (p.pool_size != 1 && p.pool_size != 3 && p.pool_size != 5 && p.pool_size != 7)
        return "pool_size must be 1, 3, 5 or 7";
    if (p.scale < 1 || p.scale > 64) return "scale must be from 1 to 64";
    if (p.motion_channels > 128) return "motion must have at most 128 channels";
    if ((p.motion_layout == Layout::kHwc8 && p.motion_type != Type::kHalf) ||
        (p.detail_layout == Layout::kHwc8 && p.detail_type != Type::kHalf))
        return "the layout HWC8 is for half only";
    if (static_cast<std::int64_t>(p.height) * p.width > 0x7fffffff || p.width > 0xffffff)
        return "motion must have at most 2147483647 positions, 16777215 in a row";
    if (p.height > 65535 || 2 * static_cast<std::int64_t>(p.batch) > 65535 || p.batch * plan(p).groups > 65535)
        return "height and batch exceed what a launch can have";
    return nullptr;
}

std::size_t workspace_bytes(const Problem& p) noexcept {
    std::size_t sum = 0;
    for (std::size_t size : plan(p).sizes) sum += size;
    return sum;
}

int launch(const Problem& p, const void* motion, const void* motion_prev, const void* detail_prev, void* warped,
           std::int32_t* displacement, void* workspace, void* stream) noexcept {
    // CUDA's runtime keeps the last error of a thread until somebody takes it, as after a capture that failed. What is
    // there now is of an earlier call. Ours are what the query answers and what each of the two launches leaves.
    cudaGetLastError();
    int processors = 0;
    if (const cudaError_t status = multiprocessors(processors)) {
        cudaGetLastError();
        return status;
    }
    const Plan sizes = plan(p);
    const int rows = rows_per_block(p, sizes, processors);
    const unsigned blocks_down = static_cast<unsigned>(divide_up(p.height, rows));
    const int counters = static_cast<int>(p.batch * sizes.columns * blocks_down);
    const bool half = p.motion_type == Type::kHalf;
    const int outputs = kOutputs[p.pool_size / 2], columns = static_cast<int>(sizes.columns);
    const int chunks = static_cast<int>(sizes.chunks), pitch = static_cast<int>(sizes.pitch);
    const cudaStream_t queue = static_cast<cudaStream_t>(stream);
    void* parts[4] = {workspace};
    for (int i = 1; i < 4; ++i) parts[i] = static_cast<char*>(parts[i - 1]) + sizes.sizes[i - 1];
    unsigned long long* const keys = static_cast<unsigned long long*>(parts[2]);
    unsigned* const counter = static_cast<unsigned*>(parts[3]);

    const std::int64_t across = divide_up(pitch, kPositions);
    const dim3 prepare_grid(static_cast<unsigned>(columns > across ? columns : across), p.height, 2 * p.batch);
    start(half ? mtu_prepare_half : mtu_prepare_float, prepare_grid, kPrepareThreads, queue, motion, motion_prev,
          parts[0], parts[1], keys, counter, counters, p.batch, p.motion_channels, p.height, p.width, columns, outputs,
          p.pool_size / 2, p.max_displacement, pitch, p.motion_layout == Layout::kHwc8);
    if (const cudaError_t status = cudaGetLastError()) return status;
    const dim3 match_grid(columns, blocks_down, static_cast<unsigned>(p.batch * sizes.groups));
    start(kMatchKernels[half][p.pool_size / 2], match_grid, kMatchThreads, queue, parts[0], parts[1], keys, counter,
          detail_prev, warped, displacement, chunks, p.height, p.width, pitch, p.max_displacement, rows,
          static_cast<int>(sizes.groups), p.detail_channels, p.scale, p.detail_type == Type::kHalf ? 2 : 4,
          p.detail_layout == Layout::kHwc8);
    return cudaGetLastError();
}

}  // namespace mtu::correlation_argmax_warp
