"""Formats for deployment, a module each: what it needs, how it is written, and what its runtime computes."""

# The module of each format, by its name on the command line.
FORMATS = {
    "savedmodel": "convert.exports.saved_model",
    "litert": "convert.exports.litert",
    "onnx": "convert.exports.onnx",
    "gguf": "convert.exports.gguf",
    "web": "convert.exports.web",
}
