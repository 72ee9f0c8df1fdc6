// Halves in device code, for NVRTC and nvcc alike, which need no header of CUDA's for it. Includes nothing.
#pragma once

namespace mtu {
namespace {

typedef unsigned short Half;  // the bits of a half

#ifndef MTU_EMULATED  // tests/plugins/cuda_emulator has its own two for the CPU

[[maybe_unused]] __device__ __forceinline__ float to_float(Half x) {
    float y;
    asm("cvt.f32.f16 %0, %1;" : "=f"(y) : "h"(x));
    return y;
}

[[maybe_unused]] __device__ __forceinline__ Half to_half(float x) {
    Half y;
    asm("cvt.rn.f16.f32 %0, %1;" : "=h"(y) : "f"(x));
    return y;
}

#endif

[[maybe_unused]] __device__ __forceinline__ float to_float(float x) { return x; }

}  // namespace
}  // namespace mtu
