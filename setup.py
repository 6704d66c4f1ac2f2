"""ALGPT2: GPT-2 with shared blocks and factorized embeddings, in PyTorch and in Keras."""

PT = ["torch>=2.6", "transformers>=5.17", "accelerate>=1.1"]
# jinja2 makes the model card of push_to_hub.
TF = ["tensorflow>=2.20", "tensorflow-text>=2.20", "keras>=3.15", "keras-nlp>=0.32", "jinja2"]
# ONNX Runtime runs a model without PyTorch and TensorFlow; onnx writes the graph.
ONNX = ["onnx", "onnxruntime>=1.22"]
EXPORT = [*ONNX, "ai-edge-litert>=2", "gguf"]
DEMO = ["gradio>=6"]
# KerasHub's checks of a model, which the tests run, need grain.
TESTS = ["pytest", "pytest-xdist", "grain", "peft", "trl", "lm-eval", "ctranslate2", "selenium"]
DEV = [*TESTS, "ruff", "pre-commit", "mkdocs-material", "mkdocstrings[python]"]
