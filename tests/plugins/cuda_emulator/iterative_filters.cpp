// The kernels and the launcher of IterativeFilters on the CPU.

#include "launch.cu"

using namespace mtu::iterative_filters;

namespace {
const mtu::Named kKernels[] = {EMULATED(mtu_planes_float_separate), EMULATED(mtu_planes_float_shared),
                               EMULATED(mtu_planes_half_separate),  EMULATED(mtu_planes_half_shared),
                               EMULATED(mtu_pixels_separate),       EMULATED(mtu_pixels_shared)};
}

#include "emulator.h"

extern "C" std::size_t emulator_workspace_bytes(const Problem*) { return 0; }

extern "C" int emulator_launch(const Problem* problem, void** p) { return launch(*problem, p[0], p[1], p[2], nullptr); }
