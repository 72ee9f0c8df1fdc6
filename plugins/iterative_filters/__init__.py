"""The custom op IterativeFilters: identity, rules, truth, cases and executors. See README.md here."""

from __future__ import annotations

from mtu.plugins.op import Op

OP = Op(
    name="IterativeFilters",
    version=1,
    attributes={"shared_taps": 1},
    carries=(0, 1),
    function="onnx_function:function_proto",
)
