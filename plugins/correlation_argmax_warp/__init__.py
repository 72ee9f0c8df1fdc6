"""The custom op CorrelationArgmaxWarp: rules, truth, cases, executors. See README.md in this folder; imports nothing."""
