"""From a checkpoint to a bundle of two ONNX graphs. Importing this package imports nothing heavy."""
