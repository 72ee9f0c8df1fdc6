// The ops in the library; CMakeLists.txt takes their folders from here. The table of Python is in ../op.py.
#pragma once

#include "../correlation_argmax_warp/tensorrt/adapter.h"
#include "../iterative_filters/tensorrt/adapter.h"

namespace mtu {

template <typename... Each>
struct List {};

using Ops = List<CorrelationArgmaxWarp, IterativeFilters>;

}  // namespace mtu
