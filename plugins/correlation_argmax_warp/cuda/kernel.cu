// The op on the GPU: two kernels, written for NVRTC and nvcc alike. They know nothing of TensorRT. docs/kernel.md counts
// the bytes and the operations and says why they are built like this.
#include "prepare.cuh"
#include "match.cuh"

// The kernels by names that C++ and Python can find: one for float and half each, `match` also by pool.
#define MTU_PREPARE(name, T)                                                                                       \
    extern "C" __global__ void __launch_bounds__(mtu::kPrepareThreads, 4)                                          \
        name(const void* motion, const void* motion_prev, void* a, void* b, unsigned long long* keys,              \
             unsigned* counters, int counter_count, int batch, int channels, int height, int width, int columns,   \
             int outputs, int margin, int reach, int pitch, int channels_last) {                                   \
        mtu::prepare(static_cast<const T*>(motion), static_cast<const T*>(motion_prev), static_cast<unsigned*>(a), \
                     static_cast<unsigned*>(b), keys, counters, counter_count, batch, channels, height, width,     \
                     columns, outputs, margin, reach, pitch, channels_last);                                       \
    }
#define MTU_MATCH(name, T, POOL)                                                                                      \
    extern "C" __global__ void __launch_bounds__(mtu::kMatchThreads, mtu::kBlocksAtOnce<POOL>)                        \
        name(const void* a, const void* b, unsigned long long* keys, unsigned* counters, const void* detail_prev,     \
             void* warped, int* displacement, int chunks, int height, int width, int pitch, int reach,                \
             int rows_per_block, int groups, int detail_channels, int scale, int element, int channels_last) {        \
        const mtu::Detail detail = {static_cast<const char*>(detail_prev),                                            \
                                    static_cast<char*>(warped),                                                       \
                                    displacement,                                                                     \
                                    detail_channels,                                                                  \
                                    scale,                                                                            \
                                    element,                                                                          \
                                    channels_last};                                                                   \
        mtu::match<T, POOL>(static_cast<const char*>(a), static_cast<const char*>(b), keys, counters, detail, chunks, \
                            height, width, pitch, reach, rows_per_block, groups);                                     \
    }

#ifdef MTU_POOL  // a build for one problem, by NVRTC; launch.cu makes them all
MTU_PREPARE(mtu_prepare, MTU_TYPE)
MTU_MATCH(mtu_match, MTU_TYPE, MTU_POOL)
#endif
