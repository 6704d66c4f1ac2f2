"""Small models trained on one GPU, a step of each a CUDA graph: what plans.py runs side by side."""

import gc
import json
import math
import time
from dataclasses import asdict, dataclass, field

import numpy as np
import torch
from torch.nn.functional import cross_entropy, kl_div, log_softmax, scaled_dot_product_attention
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from algpt2 import ALGPT2Config, layer_schedule
from algpt2.configuration import NO_DROPOUT
from algpt2.data.packing import TrainingOrder
from algpt2.evaluation.perplexity import Evaluation
from algpt2.training.loss import IGNORED, TEMPERATURE
from algpt2.training.optimization import hyperparameters
from algpt2_pt import ALGPT2LMHeadModel
from algpt2_pt.optimization import create_optimizer, create_scheduler

LENGTH = 256
# Steps that run before a graph is captured: what libraries set up at the first call must not be part of it.
EAGER_STEPS = 3


@dataclass(frozen=True)
class Row:
    """A model and how it is trained.

    Args:
        name: str.
        sharing: str. A pattern of `algpt2.layer_schedule`.
        model: dict, other fields of the configuration.
        rate: float; or the name of a family of the sweep, for its best.
        tokens: float. Millions of tokens.
        start: str. A folder of the starts, whose model is trained on instead of a new one.
        distill_weight: float. Of the divergence from the teacher's logits in the loss.
        embedding_std, block_scale: float. Of the initial embeddings; times those of the matrices of the blocks.
        measured: tuple of float. After which shares of the steps the held-out texts are measured.
        save: bool. Whether to keep the weights.
    """

    name: str
    sharing: str = "none"
    model: dict = field(default_factory=dict)
    rate: float | str = 4e-3
    tokens: float = 20
    seed: int = 0
    beta1: float = 0.9
    beta2: float = 0.95
    warmup: float = 0.02
    clip: float | None = 1.0
    weight_decay: float = 0.1
    schedule: str = "linear"
    start: str | None = None
    distill_weight: float = 0.0
    embedding_std: float | None = None
    block_scale: float = 1.0
    measured: tuple = (0.9, 0.95, 1.0)
    save: bool = False

    @property
    def family(self):
        """str: the rows of a sweep that differ in their rate alone."""
        return self.name.partition(" @ ")[0]

    @property
    def key(self):
        """str: the name with the seed."""
        return f"{self.name} / {self.seed}"


@dataclass(frozen=True)
class Sizes:
    """The shape of the unshared model, and the tokens of a step."""

    n_layer: int = 8
    n_embd: int = 128
    vocabulary: int = 4096
    batch: int = 32

    @property
    def relaxed(self):
        """dict: the fields of all relaxations together."""
        return {"depth_norms": True, "depth_biases": True, "depth_lora_rank": 8}

    @property
    def multiplier(self):
        """dict: 1 / N of one block that is applied N times."""
        return {"residual_multiplier": 1 / self.n_layer}


def causal_attention(module, query, key, value, attention_mask, scaling, dropout=0.0, **kwargs):
    """Attention that is causal without a mask; that of transformers builds one while a graph is captured."""
    output = scaled_dot_product_attention(query, key, value, is_causal=True, scale=scaling)
    return output.transpose(1, 2), None


ALL_ATTENTION_FUNCTIONS.register("causal", causal_attention)


def configuration(row, sizes):
    """The `ALGPT2Config` of a row; `None` if this version of the project does not know what it asks for."""
    fields = {
        "vocab_size": sizes.vocabulary,
        "n_positions": LENGTH,
        "n_embd": sizes.n_embd,
        "n_layer": sizes.n_layer,
        "embedding_size": None,
        # GPT-2's gelu_new, in one kernel.
        "activation_function": "gelu_pytorch_tanh",
        **NO_DROPOUT,
        **row.model,
    }
    if unknown := fields.keys() - ALGPT2Config.__dataclass_fields__.keys():
        print(f"{row.key}: left out, unknown: {', '.join(sorted(unknown))}", flush=True)
        return None
    try:
        schedule = layer_schedule(row.sharing, fields["n_layer"])
    except ValueError as error:
        print(f"{row.key}: left out, {error}", flush=True)
        return None
    # GPT-2's heads are 64 wide, those of a small model half as wide, so that there are some.
    head_width = 32 if fields["n_embd"] < 512 else 64
    return ALGPT2Config(**fields, n_head=fields["n_embd"] // head_width, layer_schedule=schedule)


class Texts:
    """The tokens of all texts, on the device as a whole."""

    def __init__(self, directory, device):
        facts = json.loads((directory / "texts.json").read_text())
        self.vocabulary = facts.pop("vocabulary")
        tokens = {name: np.fromfile(directory / f"{name}.uint16", np.uint16).astype(np.int32) for name in facts}
        self._set(tokens, facts, device)

    @classmethod
    def random(cls, vocabulary, device):
        """Texts of random tokens, some of which are more frequent."""
        texts, generator = cls.__new__(cls), np.random.default_rng(0)
        tokens = {
            name: (vocabulary * generator.random(size) ** 3).astype(np.int32)
            for name, size in (("train", 40_000), ("first", 3_000), ("second", 700))
        }
        texts.vocabulary = vocabulary
        texts._set(tokens, {name: {"words": len(t), "bytes": 4 * len(t)} for name, t in tokens.items()}, device)
        return texts

    def _set(self, tokens, facts, device):
        train = tokens.pop("train")
        self.blocks = len(train) // LENGTH
        self.train = torch.from_numpy(train[: self.blocks * LENGTH].reshape(-1, LENGTH)).to(device)
        self.facts, self.tokens, self.rows, rows = facts, {}, {}, []
        for name, text in tokens.items():
            # Protocol stream: blocks, of which the last is shorter.
            padded = np.full(-(-len(text) // LENGTH) * LENGTH, IGNORED, dtype=np.int32)
            padded[: len(text)] = text
            start = sum(map(len, rows))
            rows.append(padded.reshape(-1, LENGTH))
            self.tokens[name], self.rows[name] = len(text), slice(start, start + len(rows[-1]))
        self.held_out = torch.from_numpy(np.concatenate(rows)).to(device)

    def perplexities(self, losses):
        """Perplexities by text from the sum of the losses of each held-out row."""
        found = {}
        for name, rows in self.rows.items():
            predicted = self.tokens[name] - (rows.stop - rows.start)
            loss = float(losses[rows].double().sum()) / predicted
            facts = self.facts[name]
            result = Evaluation(
                "stream", loss, predicted, LENGTH, None, self.tokens[name], facts["words"], facts["bytes"]
            )
            found[name] = {
                "perplexity": result.perplexity,
                "word perplexity": result.word_perplexity,
                "bits per byte": result.bits_per_byte,
            }
        return found


class Training:
    """A run, launched piece by piece on a stream of its own; everything that a step needs lies on the device.

    Args:
        row: `Row`, with its rate as a number.
        sizes: `Sizes`.
        texts: `Texts`.
        steps: int.
        model: `ALGPT2LMHeadModel` to train on; `None` for a new one.
        teacher: `ALGPT2LMHeadModel` that a row with a `distill_weight` learns from.
        graphs: bool. Whether steps are CUDA graphs.
        evaluates: bool. Whether to measure the held-out texts at all.
    """

    def __init__(self, row, sizes, texts, steps, model=None, teacher=None, graphs=True, evaluates=True):
        self.row, self.sizes, self.texts, self.steps = row, sizes, texts, steps
        self.teacher, self.graphs, self.pool = teacher, graphs, None
        device = self.device = texts.train.device
        self.model = (model or new_model(row, sizes)).to(device)
        self.parameters = [parameter for parameter in self.model.parameters() if parameter.requires_grad]
        self.optimizer = optimizer_of(row, self.model)
        self.rate = torch.zeros((), device=device)
        for group in self.optimizer.param_groups:
            # A rate on the device, which a graph reads anew at each step.
            group.update(lr=self.rate, capturable=device.type == "cuda", fused=device.type == "cuda")
        self.rates = torch.tensor(rate_table(row, steps), device=device)
        order = TrainingOrder(texts.blocks, steps * sizes.batch, row.seed)
        self.order = torch.from_numpy(order[np.arange(steps * sizes.batch)]).to(device)
        self.number = torch.zeros(1, dtype=torch.int64, device=device)
        self.losses, self.norms = torch.zeros(2, steps, device=device)
        self.places = torch.arange(sizes.batch, device=device)
        self.held_out_number = torch.zeros(1, dtype=torch.int64, device=device)
        # Of a last batch that is not full, some rows are computed twice.
        self.held_out_batches = -(-len(texts.held_out) // sizes.batch)
        self.row_losses = torch.zeros(len(texts.held_out), device=device)
        # The steps after which the held-out texts are measured, and the results.
        shares = row.measured if steps else (1.0,)
        self.evaluated_at = {round(share * steps): share for share in shares} if evaluates else {}
        self.evaluations = {}
        self.launched, self.is_finished = 0, False
        # Of the first replayed step, and of the end of those that no evaluation interrupts.
        self.started = self.ended = self.timed_steps = None

    def train_step(self):
        """One step; nothing in it waits for the device."""
        self.rate.copy_(self.rates.index_select(0, self.number)[0])
        rows = self.order.index_select(0, self.number * self.sizes.batch + self.places)
        ids = self.texts.train.index_select(0, rows).long()
        with torch.autocast(self.device.type, torch.bfloat16, enabled=self.device.type == "cuda"):
            output = self.model(ids, labels=ids, use_cache=False)
            loss = output.loss
            if weight := self.row.distill_weight:
                with torch.no_grad():
                    taught = self.teacher(ids, use_cache=False).logits
                loss = (1 - weight) * loss + weight * distillation(output.logits, taught)
        loss.backward()
        norm = torch.nn.utils.clip_grad_norm_(self.parameters, self.row.clip or math.inf)
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        self.losses.index_copy_(0, self.number, output.loss.detach().reshape(1))
        self.norms.index_copy_(0, self.number, norm.reshape(1))
        self.number += 1

    @torch.no_grad()
    def held_out_step(self):
        """The losses of the next batch of held-out rows, in float32."""
        rows = (self.held_out_number * self.sizes.batch + self.places).clamp(max=len(self.texts.held_out) - 1)
        labels = self.texts.held_out.index_select(0, rows).long()
        logits = self.model(labels.clamp(min=0), use_cache=False).logits[:, :-1].float()
        losses = cross_entropy(logits.flatten(0, 1), labels[:, 1:].flatten(), ignore_index=IGNORED, reduction="none")
        self.row_losses.index_copy_(0, rows, losses.view(len(rows), -1).sum(1))
        self.held_out_number += 1

    def launches(self):
        """Launch the run piece by piece; yields after each, and leaves the waiting to whoever asks for the next."""
        train, held_out = self.train_step, None
        for number in range(self.steps + 1):
            if self.started and not self.ended and (number in self.evaluated_at or number == self.steps):
                self.ended, self.timed_steps = self.event(), number - EAGER_STEPS
            if number in self.evaluated_at:
                self.held_out_number.zero_()
                for _ in range(self.held_out_batches):
                    if held_out is None:
                        self.held_out_step()
                        held_out = self.captured(self.held_out_step)
                    else:
                        held_out()
                    yield
                self.evaluations[self.evaluated_at[number]] = self.row_losses.clone()
            if number == self.steps:
                break
            if number == EAGER_STEPS:
                train = self.captured(self.train_step)
                self.started = self.event()
            train()
            self.launched += 1
            yield
        self.is_finished = True

    def captured(self, function):
        """A function that replays what another launches."""
        if not self.graphs:
            return function
        gc.collect()
        if torch.cuda.memory_reserved() > torch.cuda.get_device_properties(0).total_memory / 2:
            # What former graphs held is given back, which cannot happen during a capture.
            torch.cuda.empty_cache()
        graph = torch.cuda.CUDAGraph()
        # Not torch.cuda.graph, which would wait for all other runs.
        gc.disable()
        graph.capture_begin(*([self.pool] if self.pool else []), capture_error_mode="thread_local")
        try:
            function()
        finally:
            graph.capture_end()
            gc.enable()
        self.pool = graph.pool()
        return graph.replay

    def event(self):
        """A CUDA event that is recorded now; on a CPU, the time."""
        if self.device.type == "cpu":
            return time.perf_counter()
        event = torch.cuda.Event(enable_timing=True)
        event.record()
        return event

    def tokens_per_second(self):
        """float: of the steps that were replayed, without evaluations; other runs may have gone beside it."""
        if self.ended is None:
            return None
        if self.device.type == "cpu":
            seconds = self.ended - self.started
        else:
            self.ended.synchronize()
            seconds = self.started.elapsed_time(self.ended) / 1e3
        return self.timed_steps * self.sizes.batch * LENGTH / seconds

    def record(self):
        """dict: what is written of the run; waits for it."""
        losses, norms = self.losses[: self.launched].cpu(), self.norms[: self.launched].cpu()
        record = {
            "name": self.row.name,
            "seed": self.row.seed,
            "finished": self.is_finished,
            "parameters": sum(parameter.numel() for parameter in self.parameters),
            "steps": self.launched,
            "tokens": self.launched * self.sizes.batch * LENGTH,
            "tokens per second": self.tokens_per_second(),
            "held out": {f"{share:g}": self.texts.perplexities(rows) for share, rows in self.evaluations.items()},
            "loss": [round(float(part.mean()), 4) for part in losses.chunk(40)] if self.launched else [],
            "gradient norm": [round(float(part.mean()), 4) for part in norms.chunk(20)] if self.launched else [],
            "row": asdict(self.row),
            "shape": asdict(self.sizes),
        }
        return record


def distillation(logits, taught):
    """The KL divergence from the teacher's distribution at a temperature, of all tokens that the text predicts."""
    student, teacher = (
        log_softmax(each[:, :-1].flatten(0, 1).float() / TEMPERATURE, dim=-1) for each in (logits, taught)
    )
    return TEMPERATURE**2 * kl_div(student, teacher, reduction="batchmean", log_target=True)


def stored_model(directory):
    """The model of a checkpoint, in float32."""
    model = ALGPT2LMHeadModel.from_pretrained(directory, dtype=torch.float32)
    model.config._attn_implementation = "causal"
    return model


def new_model(row, sizes):
    """The model of a row, initialized by its seed."""
    torch.manual_seed(row.seed)
    config = configuration(row, sizes)
    config._attn_implementation = "causal"
    model = ALGPT2LMHeadModel(config).train()
    with torch.no_grad():
        if row.embedding_std:
            model.transformer.wte.weight.mul_(row.embedding_std / config.initializer_range)
        for name, parameter in model.transformer.h.named_parameters():
            if parameter.ndim == 2 and ".depths." not in name:
                parameter.mul_(row.block_scale)
    return model


def optimizer_of(row, model):
    """The project's AdamW of a row."""
    constants = hyperparameters("adamw", row.beta1, row.beta2)
    return create_optimizer(model, "adamw", row.rate, row.weight_decay, constants)


def rate_table(row, steps):
    """The learning rate of every step, by the project's schedule."""
    unit = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], 1.0)
    schedule = create_scheduler(unit, row.schedule, math.ceil(row.warmup * steps), max(1, steps)).lr_lambdas[0]
    return [row.rate * schedule(step) for step in range(steps)]
