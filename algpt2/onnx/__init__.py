"""ALGPT2 in ONNX, free of other frameworks: the graph with a key/value cache, its quantization, and how it is run."""

# The file of each precision in a directory, named as optimum and transformers.js look for them; `None` is float32.
FILES = {None: "onnx/model.onnx", "int8": "onnx/model_quantized.onnx", "q4": "onnx/model_q4.onnx"}
# The input that says of how many of the last tokens there are to be logits, 0 for all; named as in transformers.js.
LOGITS_KEPT = "num_logits_to_keep"
