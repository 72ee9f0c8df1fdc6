"""The custom op CorrelationArgmaxWarp: rules, truth, cases and executors. See README.md here; imports nothing."""
