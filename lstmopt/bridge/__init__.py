"""ONNX graphs as torch modules, and back."""
