"""ALGPT2 in ONNX, free of other frameworks: the graph with a key/value cache, its quantization, and how it is run."""

# The file of each precision in a directory, named as optimum and transformers.js look for them; `None` is float32.
FILES = {None: "onnx/model.onnx", "int8": "onnx/model_quantized.onnx", "q4": "onnx/model_q4.onnx"}
