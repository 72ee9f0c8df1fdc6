// The op on the GPU: a kernel for each layout, written for NVRTC and nvcc alike. They know nothing of TensorRT.
// docs/kernel.md counts the bytes and says why they are built like this.
#include "planes.cuh"
#include "pixels.cuh"

// The kernels by names that C++ and Python can find. `vectors`: whether 16 bytes can be read and written at once.
#define MTU_PLANES(name, T, SHARED)                                                                                   \
    extern "C" __global__ void __launch_bounds__(mtu::kPlaneThreads)                                                  \
        name(const void* x, const void* filters, void* filtered, int channels, int height, int width, int vectors) {  \
        const mtu::Tensors<T> tensors = {static_cast<const T*>(x), static_cast<const T*>(filters),                    \
                                         static_cast<T*>(filtered), channels, height, width};                         \
        if (vectors)                                                                                                  \
            mtu::filter_planes<T, 16 / sizeof(T), SHARED>(tensors);                                                   \
        else                                                                                                          \
            mtu::filter_planes<T, 1, SHARED>(tensors);                                                                \
    }
#define MTU_PIXELS(name, SHARED)                                                                                      \
    extern "C" __global__ void __launch_bounds__(mtu::kPixelThreads, 3)                                               \
        name(const void* x, const void* filters, void* filtered, int channels, int height, int width, int vectors) {  \
        const mtu::Tensors<mtu::Half> tensors = {static_cast<const mtu::Half*>(x),                                    \
                                                 static_cast<const mtu::Half*>(filters),                              \
                                                 static_cast<mtu::Half*>(filtered), channels, height, width};         \
        __shared__ float shared[mtu::kChannels][mtu::kPixelThreads];                                                  \
        if (vectors)                                                                                                  \
            mtu::filter_pixels<true, SHARED>(tensors, shared);                                                        \
        else                                                                                                          \
            mtu::filter_pixels<false, SHARED>(tensors, shared);                                                       \
    }

#ifdef MTU_SHARED_TAPS  // a build for one problem, by NVRTC; launch.cu makes them all
MTU_PLANES(mtu_planes, MTU_TYPE, MTU_SHARED_TAPS)
MTU_PIXELS(mtu_pixels, MTU_SHARED_TAPS)
#endif
