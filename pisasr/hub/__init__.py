"""Write models for others: a folder for the hub, ONNX files for use without PyTorch."""
