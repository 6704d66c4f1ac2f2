"""ALGPT2 in ONNX, free of other frameworks: the graph with a key/value cache, its quantization, and how it is run."""
