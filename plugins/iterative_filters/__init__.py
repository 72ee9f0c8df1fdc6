"""The custom op IterativeFilters: identity, rules, truth, cases and executors. See README.md here."""

from __future__ import annotations

from mtu.plugins.op import Limit, Op

OP = Op(
    name="IterativeFilters",
    version=1,
    attributes={"shared_taps": 1},
    carries=(0, 1),
    function="onnx_function:function_proto",
    revision=1,  # cuda/launch.h says the same
    limits={
        "batch": Limit("batch must be {}", most=65535),
        "channels": Limit("x must have {} channels", most=65535),
        "height": Limit("x must have {} rows", most=65535),
        "shared_taps": Limit("shared_taps must be {}", allowed=(0, 1)),
    },
    kernel="cuda_op:KERNEL",
    plugin="trt_plugin:Plugin",
)
