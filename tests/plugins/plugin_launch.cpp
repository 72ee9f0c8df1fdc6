// Stands for cuda/launch.cu where there is no GPU: writes down what it is called with, into the memory of `warped`.
#include "launch.h"

#include <driver_types.h>

#include <initializer_list>

namespace mtu {

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

}  // namespace mtu

extern "C" const char* cudaGetErrorString(cudaError_t) { return "an error of the test"; }
