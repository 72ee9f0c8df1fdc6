// What the launchers of all ops share; for files that nvcc compiles.
#pragma once

#include <cuda_runtime_api.h>

#include <cstdint>

namespace mtu {
namespace {

#ifndef MTU_EMULATED  // tests/plugins/cuda_emulator runs the kernels on the CPU
template <typename... Parameters, typename... Arguments>
void start(void (*kernel)(Parameters...), dim3 grid, int threads, cudaStream_t stream, Arguments... arguments) {
    kernel<<<grid, threads, 0, stream>>>(arguments...);
}
#endif

std::int64_t divide_up(std::int64_t a, std::int64_t b) { return (a + b - 1) / b; }

}  // namespace
}  // namespace mtu
