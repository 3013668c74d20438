"""Where to draw: the axes of the caller, or those of a new figure outside pyplot."""

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure, SubFigure


def figure_and_axes(
    ax: "Axes | None", size: tuple[float, float], caller: str
) -> "tuple[Figure | SubFigure, Axes]":
    """`ax` and its figure, or those of a new figure of `size` (width, height) in inches.

    Raises:
        ImportError: If matplotlib is not installed.

    Example:
        >>> figure, ax = figure_and_axes(None, (4.0, 3.0), "plot")
        >>> ax.figure is figure
        True
    """
    try:
        from matplotlib.figure import Figure
    except ImportError as error:
        raise ImportError(
            f"{caller}: matplotlib is not installed; it comes with the `plots` extra: "
            "pip install 'numpyro-ebm[plots]'."
        ) from error
    if ax is not None:
        return ax.figure, ax
    figure = Figure(figsize=size, layout="constrained")
    return figure, figure.add_subplot()
