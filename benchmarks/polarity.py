"""Classes of texts: GPT-2's shape, ALGPT2 and a bag of words, on the same labelled texts.

Each model learns the language of the texts to train on first, then their classes, as `train --task classify` does.
"""

import argparse
import json
import tempfile
from pathlib import Path

from side_by_side import json_file
from sklearn.feature_extraction.text import TfidfVectorizer
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import accuracy_score, f1_score

from algpt2 import ALGPT2Config, layer_schedule, parameter_count
from algpt2.cli import HelpFormatter, positive_float, positive_int
from algpt2.tables import markdown_table
from algpt2.training.history import read_history
from algpt2.training.run_directory import HISTORY_FILE
from algpt2_pt.train import main as train

MODELS = {"GPT-2's shape": ("none", 0), "ALGPT2": ("full", 64)}


def rows(path):
    """The texts and the labels of a file of JSON lines, two lists of str."""
    records = [json.loads(line) for line in Path(path).read_text(encoding="utf-8").splitlines()]
    return [record["text"] for record in records], [record["label"] for record in records]


def bag_of_words(arguments):
    """Accuracy and macro F1 of a logistic regression on the TF-IDF of words and pairs of them."""
    vectorizer = TfidfVectorizer(ngram_range=(1, 2), sublinear_tf=True)
    texts, labels = rows(arguments.train)
    model = LogisticRegression(C=10.0, max_iter=1000).fit(vectorizer.fit_transform(texts), labels)
    texts, labels = rows(arguments.test)
    predicted = model.predict(vectorizer.transform(texts))
    return accuracy_score(labels, predicted), f1_score(labels, predicted, average="macro"), model.coef_.size


def fine_tuned(name, arguments, folder):
    """Accuracy and macro F1 of a model after its last step, and its parameters."""
    pattern, embedding_size = MODELS[name]
    shape = f"{pattern}-{embedding_size}"
    common = ("--batch-size", "32", "--seed", str(arguments.seed), "--eval-steps", "100000", "--logging-steps", "100")
    train(
        [
            *("--preset", "algpt2-tiny", "--sharing", pattern, "--embedding-size", str(embedding_size)),
            *("--config-override", "n_positions=64", "--dataset", arguments.train, "--vocab-size", "4096"),
            *("--config-override", "vocab_size=4096", "--config-override", "resid_pdrop=0.1"),
            *("--epochs", str(arguments.language_epochs), "--output-dir", f"{folder}/{shape}-lm", *common),
        ]
    )
    directory = Path(folder, shape)
    train(
        [
            *("--task", "classify", "--init-from", f"{folder}/{shape}-lm", "--dataset", arguments.train),
            *("--validation", arguments.test, "--epochs", str(arguments.epochs), "--learning-rate", "5e-4"),
            *("--output-dir", str(directory), *common),
        ]
    )
    last = [record for record in read_history(directory / HISTORY_FILE) if "eval_accuracy" in record][-1]
    config = ALGPT2Config.from_pretrained(directory)
    assert config.layer_schedule == layer_schedule(pattern, config.n_layer)
    return last["eval_accuracy"], last["eval_f1"], parameter_count(config)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=HelpFormatter)
    parser.add_argument("--train", required=True, help="a .jsonl file with the columns text and label")
    parser.add_argument("--test", required=True, help="another, which is measured once, after the last step")
    parser.add_argument("--language-epochs", type=positive_float, default=4.0, help="passes that learn the language")
    parser.add_argument("--epochs", type=positive_float, default=3.0, help="passes that learn the classes")
    parser.add_argument("--seed", type=positive_int, default=1)
    parser.add_argument("--output", type=json_file, default="polarity.json", help="where the figures go")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        results = {name: fine_tuned(name, arguments, folder) for name in MODELS}
    results["TF-IDF + logistic regression"] = bag_of_words(arguments)
    table = [("model", "parameters", "accuracy", "macro F1")]
    for name, (accuracy, f1, parameters) in results.items():
        table.append((name, f"{parameters:,}", f"{accuracy:.3f}", f"{f1:.3f}"))
    print(markdown_table(table))
    record = {"arguments": vars(arguments), "results": results}
    arguments.output.write_text(json.dumps(record, indent=2, default=str) + "\n")


if __name__ == "__main__":
    main()
