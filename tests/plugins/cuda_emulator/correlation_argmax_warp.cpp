// The kernels and the launcher of CorrelationArgmaxWarp on the CPU.

#include "launch.cu"

using namespace mtu::correlation_argmax_warp;

namespace {
const mtu::Named kKernels[] = {
    EMULATED(mtu_prepare_float), EMULATED(mtu_prepare_half),  EMULATED(mtu_match_float_1), EMULATED(mtu_match_float_3),
    EMULATED(mtu_match_float_5), EMULATED(mtu_match_float_7), EMULATED(mtu_match_half_1),  EMULATED(mtu_match_half_3),
    EMULATED(mtu_match_half_5),  EMULATED(mtu_match_half_7)};
}

#include "emulator.h"

extern "C" std::size_t emulator_workspace_bytes(const Problem* problem) { return workspace_bytes(*problem); }

extern "C" int emulator_launch(const Problem* problem, void** p) {
    return launch(*problem, p[0], p[1], p[2], p[3], static_cast<std::int32_t*>(p[4]), p[5], nullptr);
}
