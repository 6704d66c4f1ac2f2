"""The model card of a run: README.md, as the Hugging Face hub reads it."""

import glob
import os
import re
import statistics
from pathlib import Path

from huggingface_hub import EvalResult, ModelCard, ModelCardData

from algpt2.checkpoints import MODEL_CARD_FILE
from algpt2.checkpoints.weights import PARTS, parameter_count
from algpt2.configuration import WITHOUT_DEPTHS, ALGPT2Config
from algpt2.files.atomic import file_replaced
from algpt2.imports.frameworks import FRAMEWORKS
from algpt2.tables import markdown_table
from algpt2.training.run_directory import FIGURE_FILE

# Arguments that say nothing of the model, or whose meaning another section gives.
LEFT_OUT = {
    "framework", "output_dir", "overwrite", "resume", "report_to", "push_to_hub", "logging_steps", "eval_steps",
    "save_steps", "save_total_limit", "dataset", "validation", "tokenizer", "eval_protocol", "device", "text", "steps",
    "teacher", "teacher_checksum", "distill_weight", "temperature",
}  # fmt: skip

PYTORCH_CLASSIFIER_USE = """```python
import algpt2_pt  # registers the Auto classes
from transformers import pipeline

print(pipeline("text-classification", "{name}")("Some text"))
```"""
KERAS_CLASSIFIER_USE = """```python
from algpt2_tf import TFALGPT2TextClassifier

model = TFALGPT2TextClassifier.from_pretrained("{name}")
print(model.config.id2label[int(model.predict(["Some text"])[0].argmax())])
```"""
PYTORCH_USE = """```python
import algpt2_pt  # registers the Auto classes
from transformers import AutoModelForCausalLM, AutoTokenizer

model = AutoModelForCausalLM.from_pretrained("{name}")
tokenizer = AutoTokenizer.from_pretrained("{name}")
inputs = tokenizer("The meaning of", return_tensors="pt")
print(tokenizer.decode(model.generate(**inputs, max_new_tokens=20)[0]))
```"""
KERAS_USE = """```python
from algpt2_tf import TFALGPT2LMHeadModel

model = TFALGPT2LMHeadModel.from_pretrained("{name}")
print(model.generate("The meaning of", max_length=20))
```"""


def write_model_card(directory, config, arguments, records, framework, step=None):
    """Write the README.md that describes a trained model; nothing is looked up on the network.

    Args:
        directory: path of the run directory.
        config: `ALGPT2Config`.
        arguments: dict. The command line of the training.
        records: list of dict. The history, as `algpt2.training.history.read_history` gives it.
        framework: str. `"pytorch"` or `"tensorflow"`, that of the weights.
        step: int. The step that the weights are of; by default the last.

    Raises:
        InputError: if the directory cannot be written.
    """
    directory = Path(directory)
    repository = arguments.get("push_to_hub")
    # The examples are to run where the training ran.
    name = repository or (os.path.relpath(directory) if Path.cwd() in directory.absolute().parents else str(directory))
    evaluations = [record for record in records if "eval_loss" in record]
    evaluated = next((record for record in evaluations if record["step"] == step), evaluations and evaluations[-1])
    protocol, length = arguments.get("eval_protocol") or "stream", arguments.get("length") or config.n_positions
    classifies = arguments.get("task") == "classify"
    setting = f"texts of at most {length} tokens" if classifies else f"protocol `{protocol}`, blocks of {length} tokens"
    data = ModelCardData(
        model_name=repository.rpartition("/")[2] if repository else Path(os.path.abspath(directory)).name,
        library_name=FRAMEWORKS[framework].library,
        pipeline_tag=_pipeline(arguments),
        tags=["algpt2", "gpt2", "albert", "parameter-sharing", framework],
        eval_results=_eval_results(arguments, evaluated, setting) if evaluated else None,
    )
    sections = {
        f"# {data.model_name}": _description(config, classifies),
        "## Architecture": _architecture(config),
        "## Training": _training(arguments, records),
        "## Evaluation": _evaluation(arguments, evaluations, step, setting, (directory / FIGURE_FILE).is_file()),
        "## Use": _use(name, framework, classifies),
        "## Licence and source": (
            "Not stated. Before you publish the model, name the licence of the weights and the source and the licence "
            "of the text it was trained on."
        ),
    }
    body = "\n\n".join(f"{title}\n\n{text.strip()}" for title, text in sections.items())
    with file_replaced(directory / MODEL_CARD_FILE) as new:
        ModelCard(f"---\n{data.to_yaml()}\n---\n\n{body}\n").save(new)


def renamed(card, name):
    """A model card whose examples load the model by another name.

    Args:
        card: str. Examples that differ from those that `write_model_card` writes stay as they are.
        name: str. A path, or the id of a hub repository.

    Returns:
        str.

    Example:
        >>> renamed(KERAS_USE.format(name="runs/mine"), "me/mine") == KERAS_USE.format(name="me/mine")
        True
    """
    for use in (PYTORCH_USE, KERAS_USE, PYTORCH_CLASSIFIER_USE, KERAS_CLASSIFIER_USE):
        written = re.escape(use).replace(re.escape("{name}"), r'[^"\n]+')
        card = re.sub(written, lambda _, use=use: use.format(name=name), card)
    return card


def _pipeline(arguments):
    return "text-classification" if arguments.get("task") == "classify" else "text-generation"


def _description(config, classifies):
    if config.n_block == 1:
        blocks = f"one transformer block applied {config.n_layer} times"
    elif config.n_block == config.n_layer:
        blocks = f"{config.n_layer} transformer blocks, none of them shared"
    else:
        blocks = f"{config.n_block} transformer blocks shared over {config.n_layer} depths"
    names = ", ".join(config.id2label.values())
    model = f"classifier of texts ({names})" if classifies else "language model"
    embedding = "a factorized embedding" if config.is_factorized else "an embedding of full width"
    return (
        f"An ALGPT2 {model}: GPT-2 with {blocks} and {embedding}, {parameter_count(config):,} parameters. The "
        "two ideas are those of [ALBERT](https://arxiv.org/abs/1909.11942), brought to GPT-2."
    )


def _architecture(config):
    rows = {
        "parameters": f"{parameter_count(config):,}",
        **{f"of them, {part}": f"{parameter_count(config, part):,}" for part in PARTS},
        "depths": config.n_layer,
        "blocks": config.n_block,
        "block of each depth (`layer_schedule`)": ", ".join(map(str, config.layer_schedule)),
        "width (`n_embd`)": config.n_embd,
        "embedding size": config.embedding_width,
        "heads (`n_head`)": config.n_head,
        "positions (`n_positions`)": config.n_positions,
        "vocabulary (`vocab_size`)": config.vocab_size,
    }
    for field in (*WITHOUT_DEPTHS, "residual_multiplier"):
        if getattr(config, field) != getattr(ALGPT2Config, field):
            rows[f"`{field}`"] = getattr(config, field)
    return markdown_table([("", "value"), *rows.items()]) + "\n"


def _training(arguments, records):
    rows = {"data": text_name(arguments.get("dataset"))}
    rows["steps"] = f"{max((record['step'] for record in records), default=0):,}"
    rows["tokens"] = f"{max((record['tokens'] for record in records), default=0):,}"
    speeds = [record["tokens_per_second"] for record in records if "tokens_per_second" in record]
    if speeds:
        rows["tokens/s, median"] = f"{statistics.median(speeds):,.0f}"
    for key, value in arguments.items():
        # `--max-steps` replaces the epochs.
        unused = key == "epochs" and arguments.get("max_steps")
        # Zeros are shown: they equal False, but are none.
        given = value not in (None, [], "") and value is not False
        if given and key not in LEFT_OUT and not unused:
            rows[f"`{key}`"] = text_name(value)
    return _distillation(arguments, records) + markdown_table([("", "value"), *rows.items()]) + "\n"


def _distillation(arguments, records):
    """What the model learned from besides the text; empty without a teacher."""
    if not arguments.get("teacher"):
        return ""
    share, temperature = arguments["distill_weight"], arguments["temperature"]
    measured = [record["teacher_perplexity"] for record in records if "teacher_perplexity" in record]
    own = f" The teacher's own perplexity on the text of the evaluation is {measured[0]:.4f}." if measured else ""
    return (
        f"Distilled from `{text_name(arguments['teacher'])}` as in "
        f"[Hinton et al., 2015](https://arxiv.org/abs/1503.02531): the loss is {1 - share:g} x cross-entropy + "
        f"{share:g} x T² x KL(teacher || model), with T = {temperature:g}, the temperature of both.{own}\n\n"
    )


def _evaluation(arguments, evaluations, step, setting, has_figure):
    if not evaluations:
        return "The run was not evaluated."
    best = min(evaluations, key=lambda record: record["eval_loss"])
    keys = [key for key in evaluations[-1] if key.startswith("eval_")]
    rows = [
        (which, f"{record['step']:,}", *(f"{record[key]:.4f}" if key in record else "-" for key in keys))
        for which, record in (("last", evaluations[-1]), ("best", best))
    ]
    of_tokens = "; perplexity is per token of this model's own tokenizer" if "eval_perplexity" in best else ""
    text = f"On {validation_name(arguments)}, {setting}{of_tokens}.\n\n"
    header = ("evaluation", "step", *(key.removeprefix("eval_").replace("_", " ") for key in keys))
    text += markdown_table([header, *rows]) + "\n"
    if step:
        text += f"\nThe weights are those of step {step:,}, the best checkpoint.\n"
    return text + (f"\n![Perplexity over steps and over tokens]({FIGURE_FILE})" if has_figure else "")


def _eval_results(arguments, record, setting):
    text = validation_name(arguments)
    return [
        EvalResult(
            task_type=_pipeline(arguments),
            dataset_type=text_name(arguments.get("validation") or arguments.get("dataset")),
            dataset_name=text,
            metric_type=key.removeprefix("eval_"),
            metric_name=f"{key.removeprefix('eval_').replace('_', ' ')} ({setting})",
            metric_value=value,
        )
        for key, value in record.items()
        if key.startswith("eval_")
    ]


def _use(name, framework, classifies):
    uses = (PYTORCH_CLASSIFIER_USE, KERAS_CLASSIFIER_USE) if classifies else (PYTORCH_USE, KERAS_USE)
    pytorch, keras = (use.format(name=name) for use in uses)
    if framework == "pytorch":
        return f"In PyTorch:\n\n{pytorch}\n\nIn Keras, which reads the same weights:\n\n{keras}"
    return (
        f"In Keras:\n\n{keras}\n\nIn PyTorch, after `python -m convert tf2pt` on a local copy of this directory has "
        f"added model.safetensors:\n\n{pytorch}"
    )


def validation_name(arguments):
    """str: the text that a run was evaluated on, for readers elsewhere.

    Args:
        arguments: dict. The command line of the training.
    """
    if arguments.get("validation"):
        return text_name(arguments["validation"])
    return f"the held-out part of {text_name(arguments.get('dataset'))}"


def text_name(value):
    """A value for readers elsewhere: of a local path only its name, which is all that means something to them.

    Args:
        value: anything that a command line holds.

    Returns:
        str.

    Example:
        >>> text_name("/home/me/texts/wiki.train.tokens")
        'wiki.train.tokens'
    """
    if isinstance(value, str) and (os.path.isabs(value) or glob.has_magic(value) or os.path.exists(value)):
        return Path(value).name
    if isinstance(value, list | tuple):
        return ", ".join(map(str, value))
    return "unknown" if value is None else str(value)
