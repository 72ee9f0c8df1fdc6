// The ops in the library; CMakeLists.txt takes their folders from here. The table of Python is in ../op.py.
#pragma once

#include "../correlation_argmax_warp/tensorrt/adapter.h"

namespace mtu {

template <typename... Each>
struct List {};

using Ops = List<CorrelationArgmaxWarp>;

}  // namespace mtu
