"""The record of a run: losses, speed and evaluations, as they come."""

import datetime
import json
import math
import sys
import time

from tqdm.auto import tqdm

from algpt2.errors import InputError, RunError
from algpt2.evaluation.perplexity import perplexity
from algpt2.files.atomic import write_text
from algpt2.files.reading import INDEX_BYTES, parse_json, read_bytes
from algpt2.training.flops import training_flops
from algpt2.training.run_directory import HISTORY_FILE


class History:
    """The losses of a run, appended to history.jsonl and printed as they come.

    Args:
        run: `algpt2.training.run.Run`; records after its step, of a run that was cut off, are dropped.
        peak_flops: float. The floating-point operations a second that the devices reach; `None` if unknown.
    """

    def __init__(self, run, peak_flops=None):
        self.run, self.peak_flops = run, peak_flops
        self.path = run.directory / HISTORY_FILE
        self._tokens_per_step = run.arguments.batch_size * run.length
        records = read_history(self.path) if run.step and self.path.exists() else []
        self.records = [record for record in records if record["step"] <= run.step]
        if run.is_first:
            write_history(self.path, self.records)
        self.restart_clock(run.step)

    def log_train(self, step, loss, learning_rate, **values):
        """Record the mean training loss since the last record, and the speed.

        Args:
            step: int.
            loss: float. The mean negative log-likelihood of a token, in nats; with a teacher its part is in it.
            learning_rate: float.
            **values: float. More to record; with a teacher the negative log-likelihood alone is `lm_loss`.

        Returns:
            dict of str to float: what was recorded.

        Raises:
            RunError: if the loss is not finite.
        """
        now = time.perf_counter()
        steps, seconds = step - self._last[0], now - self._last[1]
        self._last = (step, now)
        perplexities = {}
        if self.run.measures_perplexity:
            perplexities["train_perplexity"] = perplexity(values.get("lm_loss", loss))
        values = {"train_loss": loss, **perplexities, "learning_rate": learning_rate, **values}
        remaining = ""
        if steps:
            seconds_left = round(seconds / steps * (self.run.steps - step))
            remaining = f"  eta {datetime.timedelta(seconds=seconds_left)}" if step < self.run.steps else ""
            speed = steps * self._tokens_per_step / seconds
            values["tokens_per_second"] = speed
            if self.peak_flops:
                depths = self.run.depths
                flops = training_flops(self.run.config, self.run.length, depths and depths.mean)
                values["flops_share"] = speed * flops / self.peak_flops
        return self._append(step, loss, values, remaining)

    def log_evaluation(self, step, evaluation, values):
        """Record an evaluation; the time it took does not count as training.

        Args:
            step: int.
            evaluation: `algpt2.evaluation.perplexity.Evaluation`, or
                `algpt2.evaluation.classes.ClassEvaluation`.
            values: dict of str to float. What was measured with it.

        Returns:
            dict of str to float: what was recorded.

        Raises:
            RunError: if the loss is not finite.
        """
        perplexities = {"eval_perplexity": evaluation.perplexity} if self.run.measures_perplexity else {}
        values = {"eval_loss": evaluation.loss, **perplexities, **values}
        recorded = self._append(step, evaluation.loss, values)
        if self.has_stopped_improving() and self.run.is_first:
            patience = self.run.arguments.early_stopping_patience
            _print(f"no lower evaluation loss for {patience} evaluations: the run ends at step {step}")
        return recorded

    def teacher(self):
        """dict of str to float: the teacher's perplexity on the held-out text, empty if it was not measured."""
        name = "teacher_perplexity"
        return next(({name: record[name]} for record in self.records if name in record), {})

    def log_teacher(self, evaluation):
        """Record what a teacher was measured at, which is done once a run.

        Args:
            evaluation: `algpt2.evaluation.perplexity.Evaluation` of it.
        """
        self._append(self.run.step, evaluation.loss, {"teacher_perplexity": evaluation.perplexity})

    def evaluation_losses(self):
        """dict of int to float: the evaluation loss by step."""
        return evaluation_losses(self.records)

    def has_stopped_improving(self):
        """bool: whether the run ends by `--early-stopping-patience`."""
        return stopped_improving(self.evaluation_losses(), self.run.arguments.early_stopping_patience)

    def restart_clock(self, step):
        """Count the speed of training from this step and moment on."""
        self._last = (step, time.perf_counter())

    def _append(self, step, loss, values, note=""):
        if not math.isfinite(loss):
            raise divergence(step, f"the loss is {loss}")
        values = {name: float(value) for name, value in values.items()}
        record = {"step": step, "tokens": step * self._tokens_per_step, **values}
        self.records.append(record)
        if self.run.is_first:
            with self.path.open("a") as file:
                file.write(json.dumps(record) + "\n")
            _print(f"step {step}/{self.run.steps}  " + "  ".join(f"{k} {v:.4g}" for k, v in values.items()) + note)
        return values


def _print(line):
    # Above a progress bar, if there is one.
    tqdm.write(line, file=sys.stdout)
    sys.stdout.flush()


def evaluation_losses(records):
    """The evaluation loss by step.

    Args:
        records: list of dict, as of `read_history`.

    Returns:
        dict of int to float.
    """
    return {record["step"]: record["eval_loss"] for record in records if "eval_loss" in record}


def stopped_improving(losses, patience):
    """Whether the last evaluations brought no lower loss.

    Args:
        losses: dict of int to float, the evaluation loss by step.
        patience: int. How many evaluations; `None` for any number.

    Returns:
        bool.

    Example:
        >>> stopped_improving({10: 3.0, 20: 2.0, 30: 2.5, 40: 2.25}, patience=2)
        True
    """
    ordered = [losses[step] for step in sorted(losses)]
    return bool(patience and ordered) and len(ordered) - 1 - ordered.index(min(ordered)) >= patience


def divergence(step, what):
    """The error of a run that diverges.

    Args:
        step: int.
        what: str. What was found.

    Returns:
        `RunError`.
    """
    return RunError(
        f"{what} at step {step}; nothing was saved after the last checkpoint; "
        "try a lower --learning-rate, more --warmup-steps or a lower --max-grad-norm"
    )


def read_history(path):
    """The records of a history; a last line that a crash cut off does not count.

    Args:
        path: path of history.jsonl.

    Returns:
        list of dict, each with `step`, `tokens` and some of `train_loss`, `train_perplexity`, `learning_rate`,
        `tokens_per_second`, `eval_loss`, `eval_perplexity`, ...

    Raises:
        InputError: if the file is missing, or holds no record or a line that is not one.
    """
    try:
        content = read_bytes(path, INDEX_BYTES)
    except InputError as error:
        raise InputError(f"{error}; give the directory of a run") from error
    lines, records = content.decode("utf-8", errors="replace").rstrip("\n").split("\n"), []
    for number, line in enumerate(lines, start=1):
        try:
            record = parse_json(line, f"{path}: line {number}")
        except InputError:
            if number == len(lines):
                break
            raise
        if not isinstance(record, dict) or not {"step", "tokens"} <= record.keys():
            raise InputError(f"{path}: line {number} is no record of a run, which has step and tokens: {line[:60]}")
        wrong = [key for key, value in record.items() if isinstance(value, bool) or not isinstance(value, int | float)]
        if wrong:
            raise InputError(f"{path}: line {number}: {wrong[0]} is {record[wrong[0]]!r}; expected a number")
        for key in ("step", "tokens"):
            if not isinstance(record[key], int) or record[key] < 0:
                raise InputError(f"{path}: line {number}: {key} is {record[key]!r}; expected an integer from 0")
        records.append(record)
    if not records:
        raise InputError(f"{path}: no records yet; wait for the run's first loss")
    return records


def write_history(path, records):
    """Write records in place of those that are there.

    Args:
        path: path of history.jsonl.
        records: list of dict.
    """
    write_text(path, "".join(json.dumps(record) + "\n" for record in records))
