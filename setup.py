"""ALGPT2: GPT-2 with shared blocks and factorized embeddings, in PyTorch and in Keras."""

from pathlib import Path

from setuptools import find_packages, setup

PT = ["torch>=2.6", "transformers>=5.23", "accelerate>=1.1"]
# jinja2 makes the model card of push_to_hub.
TF = ["tensorflow>=2.20", "tensorflow-text>=2.20", "keras>=3.15", "keras-nlp>=0.32", "jinja2"]
# onnxscript is what torch.onnx writes ONNX with.
EXPORT = ["onnx", "onnxscript>=0.7", "onnxruntime", "ai-edge-litert>=2"]
# KerasHub's own checks of a model, which the tests run, need grain.
DEV = ["pytest", "pytest-xdist", "ruff", "grain"]

setup(
    name="algpt2",
    version="0.1.0",
    description=__doc__,
    long_description=Path(__file__).with_name("README.md").read_text(encoding="utf-8"),
    long_description_content_type="text/markdown",
    license="MIT",
    packages=find_packages(include=["algpt2*", "convert*"]),
    python_requires=">=3.10",
    install_requires=[
        "transformers>=5.23",
        "tokenizers",
        "huggingface_hub",
        "safetensors",
        "numpy",
        "ml_dtypes",
        "h5py",
        "matplotlib",
        "tqdm",
        "datasets",
        "filelock",
        "pyarrow",
    ],
    extras_require={
        "pt": PT,
        "tf": TF,
        "export": EXPORT,
        "all": [*PT, *TF, *EXPORT, "wandb", "tensorboard"],
        "dev": [*PT, *TF, *EXPORT, *DEV],
    },
)
