// How the tensors of a problem are, for launchers, adapters and tests. Plain C++17: no CUDA header, no TensorRT header.
#pragma once

#include <cstddef>
#include <cstdint>

namespace mtu {

enum class Type : int32_t { kFloat = 0, kHalf = 1 };

// kLinear: [N][C][H][W]. kHwc8: [N][H][W][C rounded up to 8], half only.
enum class Layout : int32_t { kLinear = 0, kHwc8 = 1 };

}  // namespace mtu
