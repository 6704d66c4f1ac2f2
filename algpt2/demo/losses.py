"""The losses of tokens as coloured text and as figures."""

import html
import math

import numpy as np

from algpt2.evaluation.perplexity import perplexity

# The loss that has the full colour; a token with it had one chance in 22,000.
STRONGEST, STRONGEST_DIFFERENCE = 10.0, 4.0
WORSE, BETTER = "214, 69, 51", "42, 120, 200"


def pieces(tokenizer, text, ids, losses):
    """The parts of a text that tokens stand for; tokens that share a character are one part, with the sum of losses.

    Args:
        tokenizer: `transformers.PreTrainedTokenizerFast`.
        text: str.
        ids: list of int, of `algpt2.data.encoding.encode`.
        losses: float (tokens,), NaN where there is none.

    Returns:
        list of (str, float).
    """
    offsets = tokenizer(text, add_special_tokens=False, return_offsets_mapping=True, verbose=False)["offset_mapping"]
    # What the tokenizer puts before a text stands for nothing in it.
    losses = losses[len(ids) - len(offsets) :]
    parts, shown = [], 0
    for (start, end), loss in zip(offsets, losses, strict=True):
        if end <= shown and parts:
            parts[-1] = (parts[-1][0], parts[-1][1] + loss)
            continue
        # A tokenizer may leave white space out of its offsets.
        parts.append((text[min(shown, start) : end] if shown < start else text[shown:end], float(loss)))
        shown = end
    return parts


def coloured(parts, reference=None):
    """A text whose tokens are coloured by their loss, or by how much it differs from that of another model.

    Args:
        parts: list of (str, float), of `pieces`.
        reference: the same of the other model, with the same parts.

    Returns:
        str, HTML.

    Example:
        >>> coloured([("a", math.nan), ("<b>", 5.0)])
        '<span>a</span><span style="background: rgba(214, 69, 51, 0.40)" title="loss 5.00, ...">&lt;b&gt;</span>'
    """
    spans = []
    for place, (text, loss) in enumerate(parts):
        value, told = loss, f"loss {loss:.2f}, probability {100 * math.exp(-loss):.1f}%"
        strongest = STRONGEST
        if reference is not None:
            other = reference[place][1]
            value, strongest = loss - other, STRONGEST_DIFFERENCE
            told = f"loss {loss:.2f}, of the first model {other:.2f}"
        if math.isnan(value):
            spans.append(f"<span>{html.escape(text)}</span>")
            continue
        share = 0.8 * min(1.0, abs(value) / strongest)
        style = f"background: rgba({WORSE if value >= 0 else BETTER}, {share:.2f})"
        spans.append(f'<span style="{style}" title="{told}">{html.escape(text)}</span>')
    return "".join(spans)


def by_position(losses, length):
    """The mean loss of the tokens at some distance from the beginning of their row, in groups that double.

    Args:
        losses: float (tokens,), NaN where there is none, in rows of `length`.
        length: int.

    Returns:
        list of (int, float): the first position of each group, and its mean loss.

    Example:
        >>> by_position(np.array([math.nan, 4, 2, 0]), 4)
        [(1, 4.0), (2, 1.0)]
    """
    positions, groups, first = np.arange(len(losses)) % length, [], 1
    while first < length:
        found = losses[(positions >= first) & (positions < 2 * first)]
        found = found[~np.isnan(found)]
        if found.size:
            groups.append((first, float(found.mean())))
        first *= 2
    return groups


def draw(curves, label, marks=()):
    """Perplexity over something, a line for each model.

    Args:
        curves: dict of str to list of (int, float): the mean losses by the name of the model.
        label: str, of the horizontal axis.
        marks: list of int, the places marked of each model.

    Returns:
        `matplotlib.figure.Figure`.
    """
    from matplotlib.figure import Figure
    from matplotlib.ticker import MaxNLocator, NullFormatter

    figure = Figure(figsize=(6.5, 4), layout="constrained")
    axes = figure.subplots()
    for place, (name, points) in enumerate(curves.items()):
        color = f"C{place}"
        perplexities = [perplexity(loss) for _, loss in points]
        axes.plot([x for x, _ in points], perplexities, "o-", color=color, label=name)
        if marks:
            axes.axvline(marks[place], color=color, linestyle=":", linewidth=1)
    if label == "position":
        axes.set_xscale("log", base=2)
        axes.xaxis.set_major_formatter("{x:,.0f}")
    else:
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    shown = [perplexity(loss) for points in curves.values() for _, loss in points]
    if shown and max(shown) > 10 * min(shown):
        axes.set_yscale("log")
        axes.yaxis.set_minor_formatter(NullFormatter())
    axes.yaxis.set_major_formatter("{x:,.6g}")
    axes.set(xlabel=label, ylabel="perplexity", title=f"Perplexity by {label}")
    axes.grid(True, which="both", alpha=0.3)
    axes.legend()
    return figure
