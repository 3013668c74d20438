"""Weights and samples of a model of images, drawn as a grid of tiles."""

import math
from typing import TYPE_CHECKING, Any, Literal

import jax
import numpy as np
from jaxtyping import Float, Num, Shaped

from numpyro_ebm.plots.figure import figure_and_axes

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure, SubFigure
    from matplotlib.image import AxesImage

ImageOrder = Literal["C", "F"]


def plot_weights(
    weights: Num[np.ndarray | jax.Array, "num_visible num_hidden"],
    image_shape: tuple[int, int],
    *,
    num_filters: int = 64,
    num_columns: int | None = None,
    order: Literal["norm", "index"] = "norm",
    image_order: ImageOrder = "C",
    limit: float | None = None,
    ax: "Axes | None" = None,
) -> "Figure | SubFigure":
    """Draw the weights of hidden units as a grid of images, on one scale symmetric about zero.

    Args:
        weights: Weights of shape (num_visible, num_hidden), in nats per pair of active units.
        image_shape: (height, width), of product num_visible.
        num_filters: Most hidden units to draw.
        num_columns: Images side by side; by default as many as make the grid about square.
        order: "norm" draws the units with the largest weights (Euclidean norm) first, "index" the
            first ones as they come.
        image_order: "C" if the pixels of an image are stored row by row, "F" column by column.
        limit: Weight at either end of the colour scale; by default the largest drawn, in absolute
            value.
        ax: Axes to draw into.

    Returns:
        The figure.

    Raises:
        ImportError: If matplotlib is not installed.
        ValueError: If `weights` is no finite matrix or does not fit `image_shape`, or a keyword is
            out of range.

    Example:
        >>> weights = np.random.default_rng(0).normal(size=(12, 5))
        >>> figure = plot_weights(weights, (3, 4))
        >>> figure.axes[0].get_title()
        'Weights of 5 hidden units'
    """
    weights = np.asarray(weights)
    if weights.ndim != 2:
        raise ValueError(
            "plot_weights: expected `weights` of shape (num_visible, num_hidden); got "
            f"{weights.shape}."
        )
    if order not in ("norm", "index"):
        raise ValueError(f'plot_weights: expected `order` "norm" or "index"; got {order!r}.')
    images = _as_images(weights.T, image_shape, image_order, "plot_weights", "weights")
    if order == "norm":
        images = images[np.argsort(-np.linalg.norm(weights, axis=0), kind="stable")]
    images = images[: _count(num_filters, "plot_weights", "num_filters")]
    limit = float(np.abs(images).max()) or 1.0 if limit is None else limit
    if not limit > 0:
        raise ValueError(f"plot_weights: expected a positive `limit`; got {limit}.")
    tiles = _mosaic(images, num_columns, "plot_weights")
    figure, ax = figure_and_axes(ax, _size(tiles, colorbar=True), "plot_weights")
    artist = _show(ax, tiles, cmap="RdBu_r", vmin=-limit, vmax=limit)
    figure.colorbar(artist, ax=ax, label="weight (nats)", fraction=0.05, pad=0.02)
    shown, total = len(images), weights.shape[1]
    ax.set_title(f"Weights of {shown}{f' of {total}' * (shown < total)} hidden units")
    return figure


def plot_samples(
    samples: Shaped[np.ndarray | jax.Array, "..."],
    image_shape: tuple[int, int],
    *,
    num_samples: int = 64,
    num_columns: int | None = None,
    image_order: ImageOrder = "C",
    value_range: tuple[float, float] | None = None,
    title: str | None = None,
    ax: "Axes | None" = None,
) -> "Figure | SubFigure":
    """Draw fantasy samples, or any images, as a grid: low values white, high values black.

    Args:
        samples: Images (..., num_visible) or (..., height, width), of any unit with numbers for
            values; leading axes (chains, draws) are drawn one after the other.
        image_shape: (height, width), of product num_visible.
        num_samples: Most images to draw, the first ones.
        num_columns: Images side by side; by default as many as make the grid about square.
        image_order: "C" if the pixels of an image are stored row by row, "F" column by column
            (images that have two axes already are taken as they are).
        value_range: Values that are drawn white and black; by default (0, 1) if it holds all that
            is drawn, else the lowest and the highest value.
        title: Title of the axes.
        ax: Axes to draw into.

    Returns:
        The figure.

    Raises:
        ImportError: If matplotlib is not installed.
        ValueError: If `samples` is empty, not finite or does not fit `image_shape`, or a keyword
            is out of range.

    Example:
        >>> samples = np.random.default_rng(0).integers(0, 2, (2, 10, 12))  # chain, draw, pixel
        >>> figure = plot_samples(samples, (3, 4), num_samples=6, title="Fantasies")
        >>> figure.axes[0].get_title()
        'Fantasies'
    """
    images = _as_images(np.asarray(samples), image_shape, image_order, "plot_samples", "samples")
    images = images[: _count(num_samples, "plot_samples", "num_samples")]
    low, high = value_range or (images.min(), images.max())
    if value_range is None and low >= 0 and high <= 1:
        low, high = 0.0, 1.0
    if value_range is not None and not low < high:
        raise ValueError(f"plot_samples: expected an increasing `value_range`; got {value_range}.")
    tiles = _mosaic(images, num_columns, "plot_samples")
    figure, ax = figure_and_axes(ax, _size(tiles), "plot_samples")
    _show(ax, tiles, cmap="gray_r", vmin=low, vmax=high)
    if title is not None:
        ax.set_title(title)
    return figure


def _as_images(
    values: Shaped[np.ndarray, "..."],
    image_shape: tuple[int, int],
    image_order: ImageOrder,
    caller: str,
    argument: str,
) -> Float[np.ndarray, "num_images height width"]:
    """Finite images out of rows of pixels, or out of images with leading axes."""
    height, width = image_shape
    if image_order not in ("C", "F"):
        raise ValueError(f'{caller}: expected `image_order` "C" or "F"; got {image_order!r}.')
    if values.shape[-2:] == (height, width):
        images = values.reshape(-1, height, width)
    elif values.ndim == 0 or values.shape[-1] != height * width:
        raise ValueError(
            f"{caller}: expected `{argument}` of {height * width} pixels an image to fit "
            f"`image_shape` {image_shape}; got an array of shape {values.shape}."
        )
    elif image_order == "C":
        images = values.reshape(-1, height, width)
    else:
        images = values.reshape(-1, width, height).swapaxes(1, 2)
    images = images.astype(np.float64)
    if images.size == 0 or not np.isfinite(images).all():
        raise ValueError(
            f"{caller}: expected at least one image and finite `{argument}`; got shape "
            f"{values.shape} with {np.count_nonzero(~np.isfinite(images))} values not finite."
        )
    return images


def _count(value: int, caller: str, argument: str) -> int:
    """A number of tiles, checked."""
    if value < 1:
        raise ValueError(f"{caller}: expected `{argument}` of at least 1; got {value}.")
    return value


def _mosaic(
    images: Float[np.ndarray, "num_images height width"], num_columns: int | None, caller: str
) -> Float[np.ndarray, "rows columns"]:
    """The images side by side, NaN in the gaps around them, infinity where none is left."""
    count, height, width = images.shape
    square = math.ceil(math.sqrt(count * height / width))
    columns = min(
        count, _count(square if num_columns is None else num_columns, caller, "num_columns")
    )
    rows = math.ceil(count / columns)
    tiles = np.full((rows * columns, height + 1, width + 1), np.inf)
    tiles[:count] = np.nan
    tiles[:count, :-1, :-1] = images
    grid = tiles.reshape(rows, columns, height + 1, width + 1).swapaxes(1, 2)
    grid = grid.reshape(rows * (height + 1), columns * (width + 1))
    return np.pad(grid, ((1, 0), (1, 0)), constant_values=np.nan)


def _size(
    tiles: Float[np.ndarray, "rows columns"], *, colorbar: bool = False
) -> tuple[float, float]:
    """Width and height of a figure for the tiles, in inches."""
    rows, columns = tiles.shape
    width = 6.0
    height = min(12.0, max(1.0, width * rows / columns))
    return width + 0.9 * colorbar, height + 0.4


def _show(ax: "Axes", tiles: Float[np.ndarray, "rows columns"], **style: Any) -> "AxesImage":
    """Draw the tiles with the gaps between them in grey."""
    from matplotlib import colormaps

    colours = colormaps[style.pop("cmap")].with_extremes(bad="0.75")
    ax.set_axis_off()
    opacity = np.where(np.isinf(tiles), 0.0, 1.0)
    return ax.imshow(tiles, cmap=colours, alpha=opacity, interpolation="nearest", **style)
