"""Run a checkpoint in both frameworks and compare what they compute."""

from dataclasses import dataclass

import numpy as np
import torch

from algpt2.checkpoint import find_checkpoint, read_config
from algpt2.commands import prepare_prompts, validation_text
from algpt2.evaluation import evaluate
from algpt2.generation import Sampling, continue_text
from algpt2.reporting import markdown_table
from algpt2.weights import cast_weights
from algpt2_pt import ALGPT2ForPreTraining, ALGPT2LMHeadModel
from algpt2_pt.evaluate import load_for_inference
from algpt2_pt.evaluate import token_loss_function as pt_token_loss_function
from algpt2_pt.generate import token_generator as pt_token_generator
from algpt2_tf import TFALGPT2ForPreTraining, TFALGPT2LMHeadModel
from algpt2_tf.evaluate import token_loss_function as tf_token_loss_function
from algpt2_tf.generate import token_generator as tf_token_generator
from algpt2_tf.weights import assign_weights, canonical_weights

# The largest difference of two logits, relative to the largest logit, by the dtype of the computation.
TOLERANCES = {"float32": 1e-5, "float64": 1e-12}


@dataclass(frozen=True)
class Comparison:
    """One quantity as both frameworks compute it.

    Args:
        name: str.
        tensorflow, pytorch: str, as shown; empty for a quantity that is a difference itself.
        difference: str, as shown.
        passed: bool. Whether they agree within tolerance.
    """

    name: str
    tensorflow: str
    pytorch: str
    difference: str
    passed: bool


def load_both(tf_directory, pt_directory, dtype=None):
    """The model of one directory in TensorFlow and of one in PyTorch, in one compute dtype.

    Args:
        tf_directory, pt_directory: path. The same, or the two sides of a conversion.
        dtype: str. The weights of both are rounded to it; `None` leaves them as stored.

    Returns:
        tuple of (`TFALGPT2LMHeadModel`, `ALGPT2LMHeadModel`, dtype), or of the models for pretraining if the
        configuration in PyTorch's directory names them. The dtype, that of the computation, is `"float64"` where the
        weights are, else `"float32"`.

    Raises:
        algpt2.errors.InputError: if either cannot be read.
    """
    if "ALGPT2ForPreTraining" in (read_config(pt_directory).architectures or ()):
        tf_class, pt_class = TFALGPT2ForPreTraining, ALGPT2ForPreTraining
    else:
        tf_class, pt_class = TFALGPT2LMHeadModel, ALGPT2LMHeadModel
    pytorch = load_for_inference(pt_directory, pt_class, dtype=dtype or "auto")
    compute_dtype = "float64" if pytorch.dtype == torch.float64 else "float32"
    pytorch.to(getattr(torch, compute_dtype))
    tensorflow = tf_class.from_pretrained(tf_directory, dtype=compute_dtype)
    if dtype:
        assign_weights(tensorflow, cast_weights(canonical_weights(tensorflow), dtype))
    return tensorflow, pytorch, compute_dtype


def compare_logits(tensorflow, pytorch, dtype):
    """Compare the logits of every head on fixed token ids, unpadded and padded.

    Args:
        tensorflow: `TFALGPT2LMHeadModel` or `TFALGPT2ForPreTraining`.
        pytorch: `ALGPT2LMHeadModel` or `ALGPT2ForPreTraining`.
        dtype: str. Selects the tolerance.

    Returns:
        list of `Comparison`.
    """
    config = tensorflow.config
    length = min(config.n_positions, 64)
    ids = np.random.default_rng(0).integers(config.vocab_size, size=(4, length))
    padding = np.arange(length) < np.array([length, length // 2, length // 3 + 1, 1])[:, None]
    comparisons = []
    for name, mask in (("unpadded", np.ones_like(ids)), ("padded", padding.astype(ids.dtype))):
        outputs = tensorflow({"token_ids": ids, "padding_mask": mask})
        outputs = outputs if isinstance(outputs, dict) else {"logits": outputs}
        with torch.no_grad():
            found = pytorch(torch.tensor(ids), attention_mask=torch.tensor(mask))
        for output, label in (("logits", "logit"), ("sop_logits", "sentence-order logit")):
            if output in outputs:
                expected = np.asarray(outputs[output])
                difference = np.abs(expected - found[output].numpy())
                largest = (difference[mask == 1] if output == "logits" else difference).max()
                passed = bool(largest <= TOLERANCES[dtype] * np.abs(expected).max())
                comparisons.append(Comparison(f"largest {label} difference, {name}", "", "", f"{largest:.2e}", passed))
    return comparisons


def compare_directory(directory):
    """Load both models of a directory and compare their logits.

    Args:
        directory: path with the weights of both frameworks.

    Returns:
        list of `Comparison`.

    Example:
        >>> all(c.passed for c in compare_directory("runs/demo"))  # doctest: +SKIP
        True
    """
    directory = find_checkpoint(directory)
    return compare_logits(*load_both(directory, directory))


def compare_on_text(directory, dataset, prompt, length=None, batch_size=16, max_new_tokens=24):
    """Compare loss, perplexity, logits and a greedy continuation.

    Args:
        directory: path with the weights of both frameworks and a tokenizer.
        dataset: str. As `--dataset` of evaluation.
        prompt: str. The text to continue.
        length: int. The tokens of a block; `None` means `n_positions`.
        batch_size: int.
        max_new_tokens: int. The tokens of the continuation.

    Returns:
        list of `Comparison`.

    Raises:
        algpt2.errors.InputError: if anything cannot be read.
    """
    directory, config, tokenizer = prepare_prompts(directory, [prompt])
    text, length = validation_text(directory, dataset, length)
    tensorflow, pytorch, dtype = load_both(directory, directory)
    language_model = tensorflow.language_model() if isinstance(tensorflow, TFALGPT2ForPreTraining) else tensorflow
    results = [
        evaluate(function(model), text, length, batch_size, progress=True)
        for function, model in ((tf_token_loss_function, language_model), (pt_token_loss_function, pytorch))
    ]
    comparisons = []
    for name in ("loss", "perplexity"):
        expected, found = (getattr(result, name) for result in results)
        passed = abs(expected - found) <= TOLERANCES[dtype] * abs(expected)
        row = Comparison(
            f"{name} (protocol stream)", f"{expected:.6f}", f"{found:.6f}", f"{abs(expected - found):.2e}", passed
        )
        comparisons.append(row)
    comparisons += compare_logits(tensorflow, pytorch, dtype)
    texts = [
        _continuation(
            generator(model, Sampling(), tokenizer.eos_token_id), tokenizer, prompt, max_new_tokens, config.n_positions
        )
        for generator, model in ((tf_token_generator, tensorflow), (pt_token_generator, pytorch))
    ]
    same = texts[0] == texts[1]
    comparisons.append(
        Comparison(f"greedy continuation of {prompt!r}", *map(repr, texts), "none" if same else "texts differ", same)
    )
    return comparisons


def _continuation(generate, tokenizer, prompt, max_new_tokens, n_positions):
    parts = []
    continue_text(generate, tokenizer, prompt, max_new_tokens, n_positions, parts.append)
    return "".join(parts)[len(prompt) :]


def table(comparisons):
    """The comparisons as a Markdown table."""
    rows = [("", "TensorFlow", "PyTorch", "difference", "")]
    rows += [(c.name, c.tensorflow, c.pytorch, c.difference, "ok" if c.passed else "FAILED") for c in comparisons]
    return markdown_table(rows)
