// The host side of kernel.cu for C++: checks, the launch. cuda_op.py is the same in Python; a test holds both together.

#include "../../cuda/start.h"
#include "kernel.cu"
#include "launch.h"

MTU_PLANES(mtu_planes_float_separate, float, false)
MTU_PLANES(mtu_planes_float_shared, float, true)
MTU_PLANES(mtu_planes_half_separate, mtu::Half, false)
MTU_PLANES(mtu_planes_half_shared, mtu::Half, true)
MTU_PIXELS(mtu_pixels_separate, false)
MTU_PIXELS(mtu_pixels_shared, true)

namespace mtu::iterative_filters {
namespace {

using Kernel = decltype(&mtu_pixels_shared);
// By layout and type, then by shared_taps.
constexpr Kernel kPlanes[2][2] = {{mtu_planes_float_separate, mtu_planes_float_shared},
                                  {mtu_planes_half_separate, mtu_planes_half_shared}};
constexpr Kernel kPixels[2] = {mtu_pixels_separate, mtu_pixels_shared};

}  // namespace

const char* check(const Problem& p) noexcept {
    if (p.batch < 1 || p.channels < 1 || p.height < 1 || p.width < 1)
        return "batch, channels, height and width must be at least 1";
    if (p.batch > 65535) return "batch must be at most 65535";
    if (p.channels > 65535) return "x must have at most 65535 channels";
    if (p.height > 65535) return "x must have at most 65535 rows";
    if (p.shared_taps != 0 && p.shared_taps != 1) return "shared_taps must be 0 or 1";
    if (p.layout == Layout::kHwc8 && p.type != Type::kHalf) return "the layout HWC8 is for half only";
    if (static_cast<std::int64_t>(p.height) * p.width > 0x7fffffff || p.width > 0xffffff)
        return "x must have at most 2147483647 positions, 16777215 in a row";
    return nullptr;
}

int launch(const Problem& p, const void* x, const void* filters, void* filtered, void* stream) noexcept {
    // CUDA's runtime keeps the last error of a thread until somebody takes it. What is there now is of an earlier call.
    cudaGetLastError();
    const bool pixels = p.layout == Layout::kHwc8, half = p.type == Type::kHalf;
    const int line = pixels ? p.channels : p.width, vector = half ? 8 : 4;
    const auto ends = reinterpret_cast<std::uintptr_t>(x) | reinterpret_cast<std::uintptr_t>(filters) |
                      reinterpret_cast<std::uintptr_t>(filtered);
    const int vectors = ends % 16 == 0 && line % vector == 0;
    const std::int64_t lanes = std::int64_t{p.height} * p.width / (vectors ? vector : 1);
    const std::int64_t blocks =
        pixels ? divide_up(p.width, kPixelsWritten) * divide_up(p.channels, kLanesOfPixel * kChannels)
               : divide_up(lanes, kPlaneThreads);
    const dim3 grid(static_cast<unsigned>(blocks), pixels ? p.height : p.channels, p.batch);
    start(pixels ? kPixels[p.shared_taps] : kPlanes[half][p.shared_taps], grid,
          pixels ? kPixelThreads : kPlaneThreads, static_cast<cudaStream_t>(stream), x, filters, filtered, p.channels,
          p.height, p.width, vectors);
    return cudaGetLastError();
}

}  // namespace mtu::iterative_filters
