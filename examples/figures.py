"""How do the figures of all examples look? One style, legends off the data, fields on a grid.

Importing it sets the style of figures.mplstyle and a backend that needs no display.
"""

from __future__ import annotations

from pathlib import Path

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
import numpy as np
from matplotlib.axes import Axes
from matplotlib.colors import Normalize, SymLogNorm
from matplotlib.figure import Figure
from matplotlib.image import AxesImage
from matplotlib.legend import Legend
from matplotlib.ticker import LogLocator, MaxNLocator, NullFormatter
from matplotlib.transforms import ScaledTranslation

plt.style.use(Path(__file__).with_name("figures.mplstyle"))

BLUE, ORANGE, GREEN, BLACK, PURPLE, SKY, VERMILION = (
    "#0072B2", "#E69F00", "#009E73", "#000000", "#CC79A7", "#56B4E9", "#D55E00")


def save(figure: Figure, path: Path) -> Path:
    """Writes the figure and forgets it."""
    figure.savefig(path)
    plt.close(figure)
    return path


def plural(count: int, noun: str, nouns: str | None = None) -> str:
    """A number with its noun: 1 seed, 2 seeds; nouns: a plural that is not formed by an s."""
    return f"{count} {noun}" if count == 1 else f"{count} {nouns or noun + 's'}"


def legend_below(ax: Axes, ncols: int = 2, points: float = 34.0, **options) -> Legend:
    """A legend under the axes, that far below their lower edge."""
    lower = ScaledTranslation(0.0, -points / 72, ax.figure.dpi_scale_trans)
    return ax.legend(loc="upper center", bbox_to_anchor=(0.5, 0.0), ncols=ncols, borderaxespad=0.0,
                     bbox_transform=ax.transAxes + lower, **options)


def show_field(ax: Axes, field: np.ndarray, extent: tuple[float, float, float, float],
               limit: float | None = None, decades: int = 0) -> AxesImage:
    """An image of a field over time and space, (times, points), on a scale that is symmetric.

    Args:
        ax: Where.
        field: The values; what is not finite is left grey.
        extent: Times and places at the edges.
        limit: The largest value of the scale; None: the largest of the field.
        decades: How many the scale shows on both sides of zero; 0: a linear one.
    """
    finite = np.where(np.isfinite(field), field, np.nan)
    if limit is None:
        limit = float(np.nanmax(np.abs(finite), initial=0.0)) or 1.0
    norm = Normalize(-limit, limit)
    if decades:
        linear = 10.0 ** (np.ceil(np.log10(limit)) - decades)
        norm = SymLogNorm(linear, linscale=0.5, vmin=-limit, vmax=limit)
    ax.set_facecolor("0.8")
    return ax.imshow(finite.T, origin="lower", aspect="auto", extent=extent, norm=norm)


def color_bar(image: AxesImage, axes: Axes | list[Axes], label: str, side: str = "right") -> None:
    """The scale of an image on one side of its axes; of a logarithmic one only the decades."""
    bar = image.figure.colorbar(image, ax=axes, label=label, location=side,
                                aspect=20 if side == "right" else 35)
    if isinstance(image.norm, SymLogNorm):
        decade = round(np.log10(image.norm.linthresh))
        powers = [10.0**k for k in range(decade, int(np.ceil(np.log10(image.norm.vmax))) + 1)
                  if 10.0**k <= image.norm.vmax]
        ticks = [*(-p for p in powers[::-1]), 0.0, *powers]
        bar.set_ticks(ticks, labels=[short(p) for p in ticks])
        bar.minorticks_off()


def short(power: float) -> str:
    """A power of ten, or zero, as a label."""
    if power == 0.0 or 0.01 <= abs(power) < 1000:
        return f"{power:g}"
    return f"{'-' if power < 0 else ''}$10^{{{round(np.log10(abs(power)))}}}$"


def plot_losses(ax: Axes, curves: dict[str, list[float]], x: list[float] | None = None) -> None:
    """Losses by epoch, or over x, on a logarithmic scale; few of them are marked, so that one is
    seen too.
    """
    for label, curve in curves.items():
        at = np.arange(1, len(curve) + 1) if x is None else x
        ax.semilogy(at, curve, label=label, marker="o" if len(curve) < 30 else None)
    ax.set_xlim(0, None)
    if x is None:
        whole_numbers(ax)
    label_decades(ax)


def whole_numbers(*axes: Axes) -> None:
    """Abscissas of epochs or iterations, without fractions."""
    for ax in axes:
        ax.xaxis.set_major_locator(MaxNLocator(integer=True))


def label_decades(ax: Axes) -> None:
    """Numbers on a logarithmic ordinate that spans less than two decades: 1, 2 and 5 of each."""
    low, high = ax.get_ylim()
    if high / low < 100:
        ax.yaxis.set_major_locator(LogLocator(subs=(1.0, 2.0, 5.0)))
        ax.yaxis.set_major_formatter(lambda value, _: f"{value:.3g}")
        ax.yaxis.set_minor_formatter(NullFormatter())


def plot_classification(title: str, runs: list[dict]) -> Path:
    """Loss and accuracy against the epoch, one line a run; beside the checkpoint of the first.

    Args:
        title: Of the figure.
        runs: Each with ``test``, ``best_epoch``, ``checkpoint``, and its ``history``: a row with
            ``loss`` for each epoch, with ``val`` and ``test`` where it was evaluated.
    """
    figure, (left, right) = plt.subplots(1, 2, figsize=(9.5, 4.2))
    for number, run in enumerate(runs):
        loss = [row["loss"] for row in run["history"]]
        at, val, test = np.array([(epoch, 100 * row["val"], 100 * row["test"])
                                  for epoch, row in enumerate(run["history"], 1) if "val" in row]).T
        thin = {"lw": 1.2, "marker": "." if len(loss) < 30 else None}
        labels = [None] * 3 if number else ["validation", "test", "test at the best validation"]
        left.semilogy(range(1, len(loss) + 1), loss, color=BLUE, ls="-", **thin)
        right.plot(at, val, color=ORANGE, ls="--", label=labels[0], **thin)
        right.plot(at, test, color=GREEN, ls="-", label=labels[1], **thin)
        right.plot(run["best_epoch"], 100 * run["test"], "o", color=BLACK, zorder=3,
                   label=labels[2])
    left.set(xlabel="epoch", ylabel="training loss (cross-entropy)",
             title="loss on the training nodes")
    label_decades(left)
    whole_numbers(left, right)
    mean = np.mean([100 * run["test"] for run in runs])
    right.set(xlabel="epoch", ylabel="accuracy in %", title="test accuracy at the best validation: "
              f"{mean:.1f} %, {plural(len(runs), 'seed')}")
    legend_below(right, ncols=3)
    figure.suptitle(title)
    first = runs[0]["checkpoint"]
    more = "" if len(runs) == 1 else f"-and-{len(runs) - 1}-more"
    epochs = max(len(run["history"]) for run in runs)
    return save(figure, first.with_name(f"{first.stem}{more}-{epochs}epochs.png"))
