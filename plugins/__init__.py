"""Custom ops, one folder each, and what they share. Importing this package imports nothing heavy.

op           an op as one object; the table name -> folder
nodes        the nodes of our ops in an ONNX graph
onnx_body    the body of an op's ONNX function, node by node
torch_node   an op as one node of a graph that torch exports
nvrtc        CUDA sources compiled and kept; launches through the driver
kernel       the CUDA kernels of an op for Python: what its folder says of them, and what starts them
cuda/        what the CUDA sources of the ops share
register     makes plugins known to a TensorRT, from a C++ library or in Python
trt_python   the plugin in Python, but for what is the op's own
cpp/         the same in C++, and its build
build, cli   mtu-build-plugin

A new op is a folder with an `OP`, a name in `op.OPS` and two lines in cpp/ops.h.
"""
