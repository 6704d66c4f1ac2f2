"""The time to the first token of the command line, and what of it is imports: `python benchmarks/start_up.py`.

Every variant is a process of its own, from its start to its end: the `generate` commands with one new token, and the
imports that transformers' GPT-2 and KerasHub's need before anything can be loaded. The model is `algpt2` with random
weights and a small tokenizer.
"""

import argparse
import statistics
import subprocess
import sys
import tempfile

from side_by_side import add_rounds, json_file, report

from algpt2 import ALGPT2Config
from algpt2.benchmark.timing import processor, time_in_turns
from algpt2.cli import HelpFormatter
from algpt2.data.corpus import read_corpus
from algpt2.data.train_tokenizer import train_tokenizer
from algpt2_pt import ALGPT2LMHeadModel

IMPORTS = {
    "import transformers' GPT-2": "import torch; from transformers import AutoTokenizer, GPT2LMHeadModel",
    "import KerasHub's GPT-2": "import tensorflow; from keras_hub.models import GPT2CausalLM",
}
COMMANDS = {
    "algpt2_pt.generate": ["-m", "algpt2_pt.generate"],
    "algpt2_tf.generate": ["-m", "algpt2_tf.generate"],
    "algpt2_pt.generate --runtime onnx, q4": ["-m", "algpt2_pt.generate", "--runtime", "onnx"],
}


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=HelpFormatter)
    add_rounds(parser)
    parser.add_argument("--output", type=json_file, default="start-up.json", help="the JSON file")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as directory:
        tokenizer = train_tokenizer(read_corpus("python-docs").train, vocab_size=1000)
        tokenizer.save_pretrained(directory)
        ALGPT2LMHeadModel(ALGPT2Config(vocab_size=len(tokenizer))).save_pretrained(directory)
        commands = {name: ["-c", imports] for name, imports in IMPORTS.items()}
        exported = f"{directory}/q4"
        export = [sys.executable, "-m", "convert", "export", directory, "--to", "onnx", "--quantize", "q4"]
        subprocess.run([*export, "--output", exported], check=True, capture_output=True)
        for name, command in COMMANDS.items():
            model = exported if "onnx" in name else directory
            commands[name] = [*command, model, "The value of", "--max-new-tokens", "1"]

        def runner(command):
            return lambda: subprocess.run([sys.executable, *command], check=True, capture_output=True)

        seconds, first = time_in_turns({name: runner(command) for name, command in commands.items()}, arguments.rounds)
    rows = [
        {
            "variant": name,
            "s": f"{statistics.median(values):.1f}",
            "spread": f"{min(values):.1f} to {max(values):.1f}",
        }
        for name, values in seconds.items()
    ]
    report(f"Start to first token, {processor()}", rows, {"seconds": seconds, "first": first}, arguments.output)


if __name__ == "__main__":
    main()
