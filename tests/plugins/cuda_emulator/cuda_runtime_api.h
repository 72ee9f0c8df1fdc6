// As much of CUDA as kernel.cu and launch.cu use, on the CPU: a test double, found before CUDA's own header.
//
// A block's threads are fibers. They run one after the other, in an order shuffled by a seed, each until it has to
// wait; so a missing barrier shows as a wrong result. Blocks run one after the other, shuffled too, and find in shared
// memory, which is static, what the last one left there.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <utility>

#define MTU_EMULATED
#define __global__
#define __device__
#define __forceinline__ inline
#define __launch_bounds__(...)
#define __align__(bytes) __attribute__((aligned(bytes)))
#define __shared__ static
#define __restrict__

struct uint2 {
    unsigned x, y;
};
struct alignas(16) uint4 {
    unsigned x, y, z, w;
};
struct alignas(8) float2 {
    float x, y;
};
struct dim3 {
    unsigned x, y, z;
    dim3(unsigned x = 1, unsigned y = 1, unsigned z = 1) : x(x), y(y), z(z) {}
};

using cudaStream_t = void*;
enum cudaError_t { cudaSuccess = 0, cudaErrorUnknown = 999 };
enum cudaDeviceAttr { cudaDevAttrMultiProcessorCount };

namespace emulator {

struct Lane {
    unsigned words[6];
};

extern dim3 thread_index, block_index, grid_size;
extern int multiprocessors;
// Which call fails, with which code: each of them leaves it as the last error.
extern int failing_call, failing_code, launches;
extern cudaError_t last_error;

cudaError_t answer(bool fails);
void wait_for_block();
// Gives each lane what every lane of its warp has brought.
const Lane* exchange(const Lane& mine);
int lane();
void run(dim3 grid, int threads, void (*body)(void*), void* argument);

}  // namespace emulator

#define threadIdx emulator::thread_index
#define blockIdx emulator::block_index
#define gridDim emulator::grid_size

// A device of 64 or more: launch.cu asks again each time.
inline cudaError_t cudaGetDevice(int* device) { return *device = 64, emulator::answer(emulator::failing_call == 1); }
inline cudaError_t cudaDeviceGetAttribute(int* value, cudaDeviceAttr, int) {
    return *value = emulator::multiprocessors, emulator::answer(emulator::failing_call == 2);
}
inline cudaError_t cudaGetLastError() {
    const cudaError_t error = emulator::last_error;
    return emulator::last_error = cudaSuccess, error;
}

using std::max;
using std::min;

inline uint4 make_uint4(unsigned x, unsigned y, unsigned z, unsigned w) { return {x, y, z, w}; }
inline float2 make_float2(float x, float y) { return {x, y}; }

template <typename To, typename From>
To bit_cast(From from) {
    static_assert(sizeof(To) == sizeof(From), "");
    To to;
    std::memcpy(&to, &from, sizeof to);
    return to;
}
inline unsigned __float_as_uint(float x) { return bit_cast<unsigned>(x); }
inline float __uint_as_float(unsigned x) { return bit_cast<float>(x); }

inline void __syncthreads() { emulator::wait_for_block(); }
inline void __syncwarp() { emulator::exchange({}); }
inline void __threadfence() {}
inline int __shfl_xor_sync(unsigned, int value, int mask) {
    return static_cast<int>(emulator::exchange({{static_cast<unsigned>(value)}})[emulator::lane() ^ mask].words[0]);
}
// The lane that is `step` further on; at the warp's ends its own.
inline float shifted(float value, int step) {
    const emulator::Lane* lanes = emulator::exchange({{__float_as_uint(value)}});
    const int from = emulator::lane() + step;
    return from < 0 || from > 31 ? value : __uint_as_float(lanes[from].words[0]);
}
inline float __shfl_up_sync(unsigned, float value, int step) { return shifted(value, -step); }
inline float __shfl_down_sync(unsigned, float value, int step) { return shifted(value, step); }
inline float __shfl_xor_sync(unsigned, float value, int mask) {
    return __uint_as_float(emulator::exchange({{__float_as_uint(value)}})[emulator::lane() ^ mask].words[0]);
}
template <typename T>
T atomicMax(T* place, T value) {
    const T old = *place;
    *place = std::max(old, value);
    return old;
}
template <typename T>
T atomicAdd(T* place, T value) {
    const T old = *place;
    *place += value;
    return old;
}

namespace mtu {
namespace {

typedef unsigned short Half;

inline float to_float(Half x) { return static_cast<float>(bit_cast<_Float16>(x)); }
inline Half to_half(float x) { return bit_cast<Half>(static_cast<_Float16>(x)); }
inline float infinity() { return INFINITY; }
inline int this_thread() { return static_cast<int>(threadIdx.x); }

inline void multiply_add(float (&c)[4], unsigned a0, unsigned a1, unsigned a2, unsigned a3, unsigned b0, unsigned b1) {
    const emulator::Lane* lanes = emulator::exchange({{a0, a1, a2, a3, b0, b1}});
    const int g = emulator::lane() / 4, t = emulator::lane() % 4;
    const auto half = [](unsigned word, int i) { return to_float(static_cast<Half>(word >> (16 * i))); };
    for (int i = 0; i < 4; ++i)
        for (int k = 0; k < 16; ++k) {
            // Entry k of row g (+ 8) of a and of column 2 t (+ 1) of b: lane k / 2 % 4 of the row's and column's four.
            const int owner = k / 2 % 4, upper = k / 8;
            const float a = half(lanes[4 * g + owner].words[2 * upper + i / 2], k % 2);
            const float b = half(lanes[4 * (2 * t + i % 2) + owner].words[4 + upper], k % 2);
            c[i] += a * b;
        }
}

template <typename... Parameters, typename... Arguments>
void start(void (*kernel)(Parameters...), dim3 grid, int threads, void*, Arguments... arguments) {
    if (emulator::answer(emulator::failing_call == 3 + emulator::launches++)) return;
    auto call = [&] { kernel(arguments...); };
    emulator::run(grid, threads, [](void* body) { (*static_cast<decltype(call)*>(body))(); }, &call);
}

// Starts a kernel by the addresses of its arguments, as CUDA's driver does.
template <typename... Parameters, std::size_t... I>
void start_of(void (*kernel)(Parameters...), dim3 grid, int threads, void** arguments, std::index_sequence<I...>) {
    start(kernel, grid, threads, nullptr, *static_cast<Parameters*>(arguments[I])...);
}
struct Named {
    const char* name;
    void (*start)(dim3 grid, int threads, void** arguments);
};
template <typename... Parameters>
constexpr std::index_sequence_for<Parameters...> places(void (*)(Parameters...)) {
    return {};
}
#define EMULATED(kernel)                                                   \
    {#kernel, [](dim3 grid, int threads, void** arguments) {               \
         mtu::start_of(kernel, grid, threads, arguments, mtu::places(kernel)); \
     }}

}  // namespace
}  // namespace mtu
