"""Many runs of many_runs.py side by side in the streams of one process, and what they leave: for relaxations.py."""

import io
import json
import math
import tarfile
import time
from collections import deque
from dataclasses import replace

import torch
from many_runs import LENGTH, Row, Training, configuration, stored_model
from safetensors.torch import save as to_safetensors
from torch.nn.attention import SDPBackend, sdpa_kernel

WEIGHTS_LIMIT = 15_000_000


class Plan:
    """Rows that wait, run and are done.

    Args:
        rows: list of `Row`.
        sizes: `Sizes`.
        texts: `Texts`.
        directory: `Path`.
        name: str, of the file in the directory.
        former: list of dict, records of other plans, for the best rates.
        deadline: float, by `time.monotonic`.
        starts: `Path` of a folder with the checkpoint `teacher`, and those compressed from it by the names in the rows.
    """

    def __init__(self, rows, sizes, texts, directory, name, former=(), deadline=math.inf, starts=None):
        self.sizes, self.texts, self.directory, self.deadline, self.starts = sizes, texts, directory, deadline, starts
        # The plan that measures speed alone.
        self.evaluates = name != "speed"
        self.path = directory / f"{name}.jsonl"
        self.records = [*former, *read_records(self.path)]
        done = {(record["name"], record["seed"]) for record in read_records(self.path) if record["finished"]}
        rows = [row for row in rows if (row.name, row.seed) not in done and self.can_start(row)]
        # Those that others wait for come first, further seeds last; of the others the longest first, so that no single
        # one is left at the end.
        self.waiting = sorted(
            rows, key=lambda row: (row.seed, " @ " not in row.name, -row.tokens * configuration(row, sizes).n_layer)
        )
        self.planned = {row.name for row in rows}
        self.teacher = None
        if any(row.distill_weight for row in rows):
            self.teacher = stored_model(starts / "teacher").to(texts.train.device).requires_grad_(False)

    def can_start(self, row):
        """Whether the row's configuration is one that this version knows, and its start and teacher are there."""
        if (row.start or row.distill_weight) and not self.starts:
            print(f"{row.key}: left out, no --starts", flush=True)
            return False
        return configuration(row, self.sizes) is not None

    def next(self):
        """The next row that can start, its rate a number; `None` if none can now."""
        for row in self.waiting:
            rate = self.best_rate(row.rate) if isinstance(row.rate, str) else row.rate
            if rate is not None:
                self.waiting.remove(row)
                return replace(row, rate=rate)
        return None

    def best_rate(self, family):
        """The rate of a family of the sweep with the least loss, over both texts; `None` if some are not done."""
        if any(row.family == family and row.name != family for row in self.waiting):
            return None
        found = {}
        for record in self.records:
            if Row(record["name"]).family == family and " @ " in record["name"] and record["finished"]:
                found[record["row"]["rate"]] = held_out_loss(record)
        if len(found) < sum(name.startswith(f"{family} @ ") for name in self.planned):
            return None
        return min(found, key=found.get) if found else None

    def start(self, row, graphs):
        """The `Training` of a row."""
        model = stored_model(self.starts / row.start) if row.start else None
        steps = round(row.tokens * 1e6 / (self.sizes.batch * LENGTH))
        return Training(row, self.sizes, self.texts, steps, model, self.teacher, graphs, self.evaluates)

    def finish(self, training):
        """Write what a run gave."""
        record = training.record()
        self.records.append(record)
        with self.path.open("a") as file:
            file.write(json.dumps(record) + "\n")
        shown = {text: round(result["perplexity"], 3) for text, result in record["held out"].get("1", {}).items()}
        speed = record["tokens per second"]
        print(
            f"{training.row.key}: {record['parameters']:,} parameters, rate {training.row.rate:g}, "
            f"{record['steps']} steps, "
            f"{shown or ('' if record['finished'] else 'unfinished')}" + (f", {speed:,.0f} tokens/s" if speed else ""),
            flush=True,
        )
        if not record["finished"]:
            return
        if training.row.save:
            self.keep_weights(training)

    def keep_weights(self, training):
        """Append the weights, in bf16, to the first archive that has room for them."""
        weights = {name: value.to(torch.bfloat16).cpu() for name, value in training.model.state_dict().items()}
        weights.pop("lm_head.weight", None)
        name = training.row.key.replace(" ", "-").replace(",", "").replace("/", "seed")
        content = to_safetensors(weights)
        config = training.model.config.to_json_string(use_diff=False).encode()
        number = 0
        while (path := self.directory / f"weights-{number}.tar").exists():
            if path.stat().st_size + len(content) < WEIGHTS_LIMIT:
                break
            number += 1
        with tarfile.open(path, "a") as archive:
            for file, data in (("model.safetensors", content), ("config.json", config)):
                entry = tarfile.TarInfo(f"{name}/{file}")
                entry.size = len(data)
                archive.addfile(entry, io.BytesIO(data))

    def run(self, slots, graphs):
        """Run all rows, some at a time, until the deadline."""
        running, failures, begin, former = [], 0, time.monotonic(), len(self.records)
        while (running or self.waiting) and time.monotonic() < self.deadline:
            while len(running) < slots and (row := self.next()):
                try:
                    running.append(Slot(self.start(row, graphs)))
                except Exception as error:
                    print(f"{row.key}: failed: {type(error).__name__}: {error}", flush=True)
            if not running:
                print(
                    f"left out, as what they wait for did not finish: {[row.key for row in self.waiting]}", flush=True
                )
                return
            advanced = False
            for slot in list(running):
                try:
                    advanced |= slot.advance()
                except Exception as error:
                    failures += 1
                    print(f"{slot.training.row.key}: failed: {type(error).__name__}: {error}", flush=True)
                    running.remove(slot)
                    if failures > 5:
                        raise
                    continue
                if slot.is_done():
                    running.remove(slot)
                    with slot.current():
                        self.finish(slot.training)
            if not advanced:
                time.sleep(0.0002)
        for slot in running:
            with slot.current():
                self.finish(slot.training)
        seconds, tokens = time.monotonic() - begin, sum(record["tokens"] for record in self.records[former:])
        print(f"{tokens / 1e6:,.0f} million tokens in {seconds:.0f} s, {tokens / seconds:,.0f} tokens/s together")
        if self.waiting:
            print(f"not begun: {', '.join(row.key for row in self.waiting)}")


class Slot:
    """A run with the stream that it is launched on, and how far it has come there."""

    # Launches from one event to the next, and events ahead of the device: enough for the second that setting up takes.
    BETWEEN, AHEAD = 8, 24

    def __init__(self, training):
        self.training, self.events, self.count, self.exhausted = training, deque(), 0, False
        self.is_cuda = training.device.type == "cuda"
        self.stream = torch.cuda.Stream() if self.is_cuda else None
        if self.is_cuda:
            self.stream.wait_stream(torch.cuda.current_stream())
        self.pieces = training.launches()

    def current(self):
        """A context in which the stream is the current one."""
        return torch.cuda.stream(self.stream)

    def advance(self):
        """Launch some more, unless enough is waiting already; whether anything was launched."""
        while self.events and self.events[0].query():
            self.events.popleft()
        if self.exhausted or len(self.events) >= self.AHEAD:
            return False
        with self.current(), sdpa_kernel(list(BACKENDS)):
            for _ in range(self.BETWEEN):
                if next(self.pieces, self) is self:
                    self.exhausted = True
                    break
            if self.is_cuda:
                self.events.append(torch.cuda.Event())
                self.events[-1].record()
        return True

    def is_done(self):
        """Whether all was launched, and is through."""
        return self.exhausted and (not self.events or self.events[-1].query())


BACKENDS = (SDPBackend.FLASH_ATTENTION, SDPBackend.EFFICIENT_ATTENTION, SDPBackend.MATH)


def read_records(path):
    """The records of a JSON lines file; a line that was cut is left out."""
    records = []
    for line in path.read_text().splitlines() if path.exists() else ():
        try:
            records.append(json.loads(line))
        except ValueError:
            print(f"{path}: a line was cut", flush=True)
    return records


def held_out_loss(record):
    """float: the mean of the logarithms of the final perplexities on the held-out validation texts."""
    found = [math.log(r["perplexity"]) for name, r in record["held out"]["1"].items() if "test" not in name]
    loss = sum(found) / len(found)
    return loss if math.isfinite(loss) else math.inf
