"""The directed models as plain NumPyro models, by name."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from jaxtyping import Array, ArrayLike, Num

from numpyro_ebm.models.belief_network import SigmoidBeliefNetwork
from numpyro_ebm.models.linear_gaussian import PPCA, FactorAnalysis


def ppca(
    data: Num[ArrayLike, "rows d"] | None = None,
    num_factors: int = 2,
    *,
    num_visible: int | None = None,
    **kwargs: Any,
) -> Array:
    """Probabilistic PCA as a NumPyro model: ``PPCA(num_visible, num_factors).model``.

    Args:
        data: Rows; ``None`` draws them.
        num_factors: Number of factors.
        num_visible: Number of columns, by default that of ``data``.
        **kwargs: ``mask``, ``num_rows``, ``subsample_size`` of the model.

    Raises:
        ValueError: As in :class:`~numpyro_ebm.models.PPCA`.

    Example:
        >>> import jax, numpyro, numpyro_ebm as ebm
        >>> from numpyro.infer import SVI, Trace_ELBO
        >>> from numpyro.infer.autoguide import AutoNormal
        >>> data = jax.random.normal(jax.random.key(0), (50, 4))
        >>> guide = AutoNormal(ebm.models.ppca)
        >>> svi = SVI(ebm.models.ppca, guide, numpyro.optim.Adam(0.05), Trace_ELBO())
        >>> params = svi.run(jax.random.key(1), 20, data, num_factors=1, progress_bar=False).params
        >>> params["loadings"].shape
        (4, 1)
    """
    return PPCA(_columns("ppca", data, num_visible), num_factors).model(data, **kwargs)


def factor_analysis(
    data: Num[ArrayLike, "rows d"] | None = None,
    num_factors: int = 2,
    *,
    num_visible: int | None = None,
    **kwargs: Any,
) -> Array:
    """Factor analysis as a NumPyro model: ``FactorAnalysis(num_visible, num_factors).model``.

    Args:
        data: Rows; ``None`` draws them.
        num_factors: Number of factors.
        num_visible: Number of columns, by default that of ``data``.
        **kwargs: ``mask``, ``num_rows``, ``subsample_size`` of the model.

    Raises:
        ValueError: As in :class:`~numpyro_ebm.models.FactorAnalysis`.
    """
    columns = _columns("factor_analysis", data, num_visible)
    return FactorAnalysis(columns, num_factors).model(data, **kwargs)


def sigmoid_belief_network(
    data: Num[ArrayLike, "rows d"] | None = None,
    hidden_sizes: Sequence[int] = (10,),
    *,
    num_visible: int | None = None,
    **kwargs: Any,
) -> Array:
    """Sigmoid belief network as a NumPyro model: ``SigmoidBeliefNetwork(...).model``.

    Args:
        data: Rows of 0 and 1; ``None`` draws them.
        hidden_sizes: Numbers of hidden units, from the layer next to the visible units upwards.
        num_visible: Number of columns, by default that of ``data``.
        **kwargs: ``num_rows``, ``subsample_size`` of the model.

    Raises:
        ValueError: As in :class:`~numpyro_ebm.models.SigmoidBeliefNetwork`.
    """
    columns = _columns("sigmoid_belief_network", data, num_visible)
    return SigmoidBeliefNetwork(columns, tuple(hidden_sizes)).model(data, **kwargs)


def _columns(owner: str, data: Any, num_visible: int | None) -> int:
    if num_visible is not None:
        return num_visible
    shape = getattr(data, "shape", ())
    if len(shape) != 2:
        raise ValueError(
            f"{owner}: expected `data` of shape (rows, columns), or `num_visible`; got "
            f"{'none' if data is None else shape}."
        )
    return shape[1]
