"""How well a classifier knows the classes of texts."""

from dataclasses import dataclass

import numpy as np

from algpt2.generation.sampling import log_softmax


@dataclass(frozen=True)
class ClassEvaluation:
    """What was measured on held-out texts.

    Args:
        loss: float. The mean negative log-likelihood of the class of a text, in nats.
        accuracy: float. The share of texts whose class has the largest logit.
        f1: float. The mean over classes of the harmonic mean of precision and recall.
    """

    loss: float
    accuracy: float
    f1: float

    @property
    def values(self):
        """dict of str to float: what the history records besides the loss."""
        return {"eval_accuracy": self.accuracy, "eval_f1": self.f1}


def measure_classes(logits, classes):
    """The measures of some predictions.

    Args:
        logits: float (n, classes).
        classes: int (n,), the right ones.

    Returns:
        `ClassEvaluation`.

    Example:
        >>> measure_classes(np.array([[2.0, 0.0], [0.0, 2.0], [2.0, 0.0]]), np.array([0, 1, 1])).accuracy
        0.6666666666666666
    """
    logits = np.asarray(logits, dtype=np.float64)
    loss = -log_softmax(logits)[np.arange(len(classes)), classes].mean()
    predicted = logits.argmax(axis=-1)
    scores = []
    # A class that is neither there nor predicted has no score.
    for each in np.union1d(classes, predicted):
        right = np.sum((classes == each) & (predicted == each))
        scores.append(2 * right / (np.sum(classes == each) + np.sum(predicted == each)))
    return ClassEvaluation(float(loss), float(np.mean(predicted == classes)), float(np.mean(scores)))
