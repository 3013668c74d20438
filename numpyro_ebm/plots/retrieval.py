"""Precision and recall of retrieval."""

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np

from numpyro_ebm.plots.figure import figure_and_axes

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure, SubFigure


def plot_precision_recall(
    curves: Mapping[str, Any], *, ax: "Axes | None" = None
) -> "Figure | SubFigure":
    """Draw precision against recall, one line for each method.

    Args:
        curves: Results of `retrieval.precision_recall` by label, each with `precision` and
            `recall`.
        ax: Axes to draw into.

    Returns:
        The figure.

    Raises:
        ImportError: If matplotlib is not installed.
        ValueError: If there are no curves.

    Example:
        >>> from types import SimpleNamespace
        >>> curve = SimpleNamespace(precision=[1.0, 0.5], recall=[0.2, 1.0])
        >>> figure = plot_precision_recall({"codes": curve})
        >>> figure.axes[0].get_xlabel()
        'recall'
    """
    if not curves:
        raise ValueError("plot_precision_recall: expected at least one curve; got none.")
    figure, ax = figure_and_axes(ax, (5.0, 3.6), "plot_precision_recall")
    for label, curve in curves.items():
        ax.plot(np.asarray(curve.recall), np.asarray(curve.precision), marker=".", label=label)
    ax.set_xlabel("recall")
    ax.set_ylabel("precision")
    ax.set_xlim(0, 1.02)
    ax.set_ylim(0, 1.02)
    ax.legend(frameon=False)
    ax.spines[["top", "right"]].set_visible(False)
    return figure
