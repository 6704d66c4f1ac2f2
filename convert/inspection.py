"""What a checkpoint is, told from the headers of its files: no framework is imported."""

import json
from collections import Counter

from algpt2.checkpoints import CONFIG_FILE
from algpt2.checkpoints.checkpoint import no_weights, open_checkpoint
from algpt2.checkpoints.config_file import read_stored_config
from algpt2.checkpoints.directories import find_checkpoint
from algpt2.checkpoints.formats import find_weights, weight_files
from algpt2.checkpoints.generation_config import check_generation_config
from algpt2.checkpoints.weights import PARTS, parameter_count
from algpt2.configuration import schedule_pattern
from algpt2.data.encoding import check_vocabulary
from algpt2.data.tokenizer import has_tokenizer, load_tokenizer
from algpt2.errors import InputError

# The most classes whose names are told.
NAMED = 6
# What the heads of the PyTorch classes tell.
HEADS = {
    "ALGPT2ForPreTraining": "sentence order",
    "ALGPT2ForSequenceClassification": "sequence classification",
    "ALGPT2ForTokenClassification": "token classification",
    "ALGPT2ForQuestionAnswering": "question answering",
}


def inspect_checkpoint(directory):
    """Describe a checkpoint in any dialect.

    Args:
        directory: path, or the id of a hub repository.

    Returns:
        dict of str to what is found, as JSON takes it: `weights`, a list with the dialect, the files, their size in
        bytes and the dtypes of each copy of the weights; the shape of the model; the tokenizer; and `problems`, a list
        of str.

    Raises:
        algpt2.errors.InputError: if there is no configuration that can be read.

    Example:
        >>> inspect_checkpoint("runs/demo")["problems"]  # doctest: +SKIP
        []
    """
    directory = find_checkpoint(directory)
    stored, problems, found = read_stored_config(directory / CONFIG_FILE), [], []
    config = None
    for kind, path in find_weights(directory):
        try:
            checkpoint = open_checkpoint(directory, weights=(kind, path))
            config = checkpoint.config
            found.append(_describe_weights(checkpoint))
        except InputError as error:
            problems.append(str(error))
    if config is None and not problems:
        problems.append(no_weights(directory))
    report = {"checkpoint": str(directory), "weights": found}
    if config is not None:
        report |= _describe_model(config)
    try:
        check_generation_config(directory)
    except InputError as error:
        problems.append(str(error))
    report["tokenizer"] = _describe_tokenizer(directory, config, stored, problems)
    return {**report, "problems": problems}


def _describe_weights(checkpoint):
    files = weight_files(checkpoint.format, checkpoint.path)
    counts = Counter(tensor.dtype.name for tensor in checkpoint.weights.values())
    return {
        "dialect": checkpoint.dialect.name,
        "files": [file.name for file in files],
        "bytes": sum(file.stat().st_size for file in files),
        "dtypes": dict(counts),
        "tensors": len(checkpoint.weights),
        "parameters": sum(tensor.size for tensor in checkpoint.weights.values()),
        "heads": _describe_heads(checkpoint),
    }


def _describe_heads(checkpoint):
    heads = ["language model"] if checkpoint.is_language_model else []
    head = HEADS.get(checkpoint.architecture)
    if head and head.endswith("classification"):
        labels = checkpoint.config.id2label
        named = [labels[index] for index in sorted(labels)[:NAMED]] + ["..."] * (len(labels) > NAMED)
        head += f" ({len(labels)}: {', '.join(named)})"
    return [*heads, head] if head else heads


def _describe_model(config):
    return {
        "parameters": parameter_count(config),
        "parameters_of": {part: parameter_count(config, part) for part in PARTS},
        "n_layer": config.n_layer,
        "n_embd": config.n_embd,
        "n_head": config.n_head,
        "n_inner": config.inner_width,
        "n_positions": config.n_positions,
        "vocab_size": config.vocab_size,
        "activation_function": config.activation_function,
        "layer_schedule": config.layer_schedule,
        "pattern": schedule_pattern(config.layer_schedule),
        "blocks": config.n_block,
        "embedding_size": config.embedding_width,
        "factorized": config.is_factorized,
        "tie_projections": config.tie_projections,
        "tie_word_embeddings": config.tie_word_embeddings,
    }


def _describe_tokenizer(directory, config, stored, problems):
    if not has_tokenizer(directory):
        return None
    try:
        tokenizer = load_tokenizer(directory)
        if config is not None:
            check_vocabulary(tokenizer, config, directory)
    except InputError as error:
        problems.append(str(error))
        return None
    if stored.get("eos_token_id") not in (None, tokenizer.eos_token_id):
        problems.append(
            f"{directory / CONFIG_FILE}: eos_token_id is {stored['eos_token_id']}, but the tokenizer's is "
            f"{tokenizer.eos_token_id}, which conversions take"
        )
    return {"tokens": len(tokenizer), "eos_token": tokenizer.eos_token, "eos_token_id": tokenizer.eos_token_id}


def summary(report):
    """The report of `inspect_checkpoint` as lines of text.

    Args:
        report: dict.

    Returns:
        str.
    """
    rows = [("checkpoint", report["checkpoint"])]
    for weights in report["weights"]:
        dtypes = ", ".join(weights["dtypes"])
        files = weights["files"][0] + (f" and {len(weights['files']) - 1} shards" if len(weights["files"]) > 1 else "")
        rows.append(("weights", f"{weights['dialect']}: {files}, {weights['bytes'] / 1e6:,.1f} MB, {dtypes}"))
        rows.append(("", f"{weights['tensors']} tensors; heads: {', '.join(weights['heads'])}"))
    if "parameters" in report:
        rows += _model_rows(report)
    tokenizer = report["tokenizer"]
    described = "none"
    if tokenizer:
        described = (
            f"{tokenizer['tokens']:,} tokens; {tokenizer['eos_token']} ({tokenizer['eos_token_id']}) ends a text"
        )
    rows.append(("tokenizer", described))
    if not report["problems"]:
        rows.append(("problems", "none (values of weights are not read)"))
    rows += [("problem", problem) for problem in report["problems"]]
    return "\n".join(f"{name:<12} {value}" for name, value in rows)


def _model_rows(report):
    blocks = f"{report['blocks']} block" + ("s" if report["blocks"] > 1 else "")
    embedding = f"{report['vocab_size']:,} tokens of {report['embedding_size']}"
    embedding += ", factorized" if report["factorized"] else ", not factorized"
    embedding += ", projections tied" if report["tie_projections"] else ""
    embedding += ", head tied" if report["tie_word_embeddings"] else ", head of its own"
    parts = {f"of {part}": count for part, count in report["parameters_of"].items() if count}
    shape = f"{report['n_layer']} layers of {report['n_embd']}, {report['n_head']} heads, inner {report['n_inner']}"
    return [
        ("parameters", f"{report['parameters']:,}: " + ", ".join(f"{n:,} {part}" for part, n in parts.items())),
        ("shape", f"{shape}, {report['n_positions']:,} positions, {report['activation_function']}"),
        ("schedule", f"{report['pattern'] or 'no named pattern'}, {blocks}: {json.dumps(report['layer_schedule'])}"),
        ("embedding", embedding),
    ]
