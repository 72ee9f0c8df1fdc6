"""The custom op CorrelationArgmaxWarp: identity, rules, truth, cases and executors. See README.md here."""

from __future__ import annotations

from mtu.plugins.op import Limit, Op

OP = Op(
    name="CorrelationArgmaxWarp",
    version=1,
    attributes={"max_displacement": 10, "pool_size": 5, "scale": 4},
    carries=(2,),
    function="onnx_function:function_proto",
    revision=1,  # cuda/launch.h says the same
    limits={
        "max_displacement": Limit("max_displacement must be {}", 1, 20),
        "pool_size": Limit("pool_size must be {}", allowed=(1, 3, 5, 7)),
        "scale": Limit("scale must be {}", 1, 64),
        "motion_channels": Limit("motion must have {} channels", most=128),
    },
    kernel="cuda_op:KERNEL",
    plugin="trt_plugin:Plugin",
)
