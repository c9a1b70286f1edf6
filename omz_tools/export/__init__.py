"""From a checkpoint to ONNX, and from ONNX to OpenVINO IR."""
