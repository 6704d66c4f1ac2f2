"""Perplexity over steps and over tokens, as a picture."""

import math

from algpt2.files.atomic import file_replaced


def draw_perplexity(histories, path, protocol="stream"):
    """Draw perplexity over steps and over tokens: training and evaluation of one run, or the evaluations of several.

    Args:
        histories: dict of str to list of dict. The records of `read_history` by the label of their run.
        path: path of the PNG file to write.
        protocol: str. The protocol of the evaluations, for the axis.

    Raises:
        InputError: if the file cannot be written.
    """
    # A Figure of its own needs no display and leaves pyplot, which a notebook may use, as it is.
    from matplotlib import rcParams
    from matplotlib.figure import Figure
    from matplotlib.ticker import EngFormatter, MaxNLocator

    figure = Figure(figsize=(10, 4.5), layout="constrained")
    panels = figure.subplots(1, 2, sharey=True)
    curves = list(_curves(histories))
    colors, styles = rcParams["axes.prop_cycle"].by_key()["color"], ("-", "--", ":", "-.")
    for axes, key in zip(panels, ("step", "tokens"), strict=True):
        for number, (label, value, records) in enumerate(curves):
            points = [(record[key], record[value]) for record in records if value in record]
            axes.plot(
                *zip(*points, strict=True),
                label=label,
                color=colors[number % len(colors)],
                linestyle=styles[number // len(colors) % len(styles)],
                # A line through one point does not show.
                marker="o" if value == "eval_perplexity" or len(points) == 1 else None,
                markersize=3,
            )
        axes.set(xlabel=key, yscale="log")
        axes.grid(True, alpha=0.3)
        axes.xaxis.set_major_locator(MaxNLocator(6, integer=True))
        axes.xaxis.set_major_formatter(EngFormatter(sep=""))
    _label_perplexities(panels[0])
    single = len(histories) == 1
    panels[0].set_ylabel(f"{'perplexity' if single else 'evaluation perplexity'} ({protocol})")
    if single:
        figure.suptitle(next(iter(histories)))
    figure.legend(*panels[0].get_legend_handles_labels(), loc="outside lower center", ncols=3)
    with file_replaced(path) as new:
        figure.savefig(new, dpi=120)


def _curves(histories):
    """Label, key and records of every curve; a run without evaluations shows its training instead."""
    for label, records in histories.items():
        keys = [key for key in ("eval_perplexity", "train_perplexity") if any(key in record for record in records)]
        for key in keys if len(histories) == 1 else keys[:1]:
            name = "validation" if key == "eval_perplexity" else "train"
            if len(histories) > 1:
                name = label if name == "validation" else f"{label} (train)"
            # The perplexity of a loss above 700 is infinite.
            yield name, key, [record for record in records if math.isfinite(record.get(key, math.inf))]


def _label_perplexities(axes):
    """Number a logarithmic axis of perplexities, also where it spans less than a decade."""
    from matplotlib.ticker import LogLocator, MaxNLocator, NullLocator

    low, high = axes.get_ylim()
    fine, coarse = (1, 1.5, 2, 3, 4, 6), (1, 2, 5)
    axes.yaxis.set_major_locator(
        LogLocator(subs=fine if high < 100 * low else coarse) if high > 4 * low else MaxNLocator(8)
    )
    axes.yaxis.set_major_formatter("{x:,.4g}" if high < 1000 else "{x:,.0f}")
    axes.yaxis.set_minor_locator(NullLocator())
