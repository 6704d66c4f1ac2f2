"""ALGPT2: GPT-2 with shared blocks and factorized embeddings, in PyTorch and in Keras."""

from pathlib import Path

from setuptools import find_packages, setup

PT = ["torch>=2.6", "transformers>=5.17", "accelerate>=1.1"]
# jinja2 makes the model card of push_to_hub.
TF = ["tensorflow>=2.20", "tensorflow-text>=2.20", "keras>=3.15", "keras-nlp>=0.32", "jinja2"]
# ONNX Runtime runs a model without PyTorch and TensorFlow; onnx writes the graph.
ONNX = ["onnx", "onnxruntime>=1.22"]
EXPORT = [*ONNX, "ai-edge-litert>=2", "gguf"]
DEMO = ["gradio>=6"]
# KerasHub's checks of a model, which the tests run, need grain.
TESTS = ["pytest", "pytest-xdist", "grain", "peft", "trl", "lm-eval", "ctranslate2", "selenium"]
# llama.cpp, built, is on PyPI for these alone; its tests are left out elsewhere.
TESTS += ['xllamacpp; sys_platform == "linux" and platform_machine == "x86_64"']
DEV = [*TESTS, "ruff", "pre-commit", "mkdocs-material", "mkdocstrings[python]"]

setup(
    name="algpt2",
    version="0.2.0",
    description=__doc__,
    long_description=Path(__file__).with_name("README.md").read_text(encoding="utf-8"),
    long_description_content_type="text/markdown",
    author="The ALGPT2 authors",
    license="MIT",
    project_urls={
        "Paper (ALBERT)": "https://arxiv.org/abs/1909.11942",
        "tGhattas/ALGPT2": "https://github.com/tGhattas/ALGPT2",
        "bilal2vec/transformers": "https://github.com/bilal2vec/transformers",
    },
    keywords="gpt-2 albert language-model parameter-sharing transformers keras keras-hub pytorch tensorflow onnx",
    classifiers=[
        "Development Status :: 4 - Beta",
        "Intended Audience :: Developers",
        "Intended Audience :: Science/Research",
        "Operating System :: OS Independent",
        "Programming Language :: Python :: 3",
        "Programming Language :: Python :: 3.10",
        "Programming Language :: Python :: 3.11",
        "Programming Language :: Python :: 3.12",
        "Topic :: Scientific/Engineering :: Artificial Intelligence",
    ],
    packages=[*find_packages(include=["algpt2*", "convert*"]), "algpt2.configs"],
    package_dir={"algpt2.configs": "configs"},
    package_data={"algpt2.configs": ["*.json"], "convert.exports": ["site/*"]},
    entry_points={"console_scripts": ["algpt2 = algpt2.__main__:main"]},
    python_requires=">=3.10",
    install_requires=[
        "transformers>=5.17",
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
        "onnx": ONNX,
        "export": EXPORT,
        "demo": DEMO,
        "all": [*PT, *TF, *EXPORT, *DEMO, "wandb", "tensorboard"],
        "dev": [*PT, *TF, *EXPORT, *DEMO, *DEV],
    },
)
