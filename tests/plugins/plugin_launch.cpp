// Stands for cuda/launch.cu of all ops where there is no GPU: writes down what it is called with, into the memory of the
// first output.
#include "correlation_argmax_warp/cuda/launch.h"
#include "iterative_filters/cuda/launch.h"

#include <driver_types.h>

#include <initializer_list>

namespace mtu::correlation_argmax_warp {

const char* check(const Problem&) noexcept { return nullptr; }

std::size_t workspace_bytes(const Problem& problem) noexcept { return static_cast<std::size_t>(problem.width); }

int launch(const Problem& p, const void* motion, const void* motion_prev, const void* detail_prev, void* warped,
           int32_t* displacement, void* workspace, void* stream) noexcept {
    auto* record = static_cast<int64_t*>(warped);
    const auto number = [](auto value) { return static_cast<int32_t>(value); };
    for (int64_t value : {p.batch, p.motion_channels, p.height, p.width, p.detail_channels, p.max_displacement,
                          p.pool_size, p.scale, number(p.motion_type), number(p.detail_type), number(p.motion_layout),
                          number(p.detail_layout)}) {
        *record++ = value;
    }
    const void* const addresses[] = {motion, motion_prev, detail_prev, warped, displacement, workspace, stream};
    for (const void* address : addresses) {
        *record++ = reinterpret_cast<int64_t>(address);
    }
    return 719;
}

}  // namespace mtu::correlation_argmax_warp

namespace mtu::iterative_filters {

const char* check(const Problem&) noexcept { return nullptr; }

int launch(const Problem& p, const void* x, const void* filters, void* filtered, void* stream) noexcept {
    auto* record = static_cast<int64_t*>(filtered);
    for (int32_t value : {p.batch, p.channels, p.height, p.width, p.shared_taps, static_cast<int32_t>(p.type),
                          static_cast<int32_t>(p.layout)}) {
        *record++ = value;
    }
    for (const void* address : {x, filters, static_cast<const void*>(filtered), static_cast<const void*>(stream)}) {
        *record++ = reinterpret_cast<int64_t>(address);
    }
    return 719;
}

}  // namespace mtu::iterative_filters

extern "C" const char* cudaGetErrorString(cudaError_t) { return "an error of the test"; }
