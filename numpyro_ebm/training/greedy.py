"""Greedy layer-wise training of deep belief networks."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpyro
from jaxtyping import Array, ArrayLike, Float, Key, Num
from numpyro.infer import SVI
from numpyro.infer.elbo import ELBO

from numpyro_ebm.distributions import DBN, RBM
from numpyro_ebm.losses import PersistentContrastiveDivergence, persistent_chains
from numpyro_ebm.random_key import require_key
from numpyro_ebm.training.fit import FitResult, fit
from numpyro_ebm.units import Bernoulli, Unit
from numpyro_ebm.units.biases import biases, with_biases
from numpyro_ebm.units.unit import LinearUnit

_INIT_SCALE = 0.01
"""Standard deviation of weights that start at random."""
_NEGLIGIBLE = 0.01
"""Share of the variance of binary units that may be left out of a machine turned upside down."""


@dataclass(frozen=True)
class GreedyResult:
    """A stack of machines trained one after the other.

    Attributes:
        dbn: The network, its recognition distribution tied to its weights.
        fits: The training run of each new machine, from the bottom up.
    """

    dbn: DBN
    fits: tuple[FitResult, ...]

    @property
    def layers(self) -> tuple[RBM, ...]:
        """The machines, from the visible units up."""
        return self.dbn.layers


def fit_greedy(
    rng_key: Key[Array, ""],
    data: Num[ArrayLike, "rows n"],
    hidden: Sequence[int | Unit],
    *,
    optim: Any,
    num_epochs: int,
    batch_size: int,
    layers: Sequence[RBM] = (),
    visible: Unit | None = None,
    loss: ELBO | None = None,
    num_chains: int = 100,
    checkpoint: str | os.PathLike[str] | None = None,
    **options: Any,
) -> GreedyResult:
    r"""Train a deep belief network layer by layer, each as the hidden units of an RBM.

    The first RBM learns the data, the second the hidden units of the first,
    :math:`h_1 \sim p(h_1 \mid x)`, drawn anew at every update, and so on. With q the recognition
    distribution of the layers below, each RBM follows the gradient of

    .. math:: \mathrm{E}_{x, q(h_{k} \mid x)} \log p_{k+1}(h_k)

    which is, up to a constant, the variational lower bound of the log-likelihood in the weights of
    the new layer. A new layer with as many hidden units, of the same kind, as the machine below has
    visible ones starts as that machine upside down: there the bound equals that of the network
    without it, so exact gradient ascent in small steps never lowers the bound. Further Bernoulli
    units start at small random weights. Fewer of them start as those of the machine that vary most,
    if the others have less than a hundredth of the variance (such as pixels that are hardly ever
    on) and their mean effect can stand for them: nearly where the network was. Other layers start
    at small random weights and the base rates of :math:`h_k`, below the network without them.

    Scales of Gaussian and ReLU units are not trained. Train layers with different settings by one
    call for each, with ``layers`` those that are done.

    Args:
        rng_key: Random key.
        data: Rows of visible units, of shape ``(rows, num_visible)``.
        hidden: Hidden layers to train, from the bottom up: numbers of Bernoulli units, or units
            that training starts from.
        optim: Optimizer of every layer, as in ``SVI``: of the parameters ``weights``, and
            ``visible`` and ``hidden``, the dictionaries of the parameters of the units.
        num_epochs: As in :func:`fit`, for each layer.
        batch_size: As in :func:`fit`.
        layers: Machines that are already trained, from the visible units up.
        visible: Visible units that the first machine starts from; Bernoulli units at the base
            rates of the data by default.
        loss: Loss of every layer; by default ``PersistentContrastiveDivergence``, with the centered
            gradient where both layers have one.
        num_chains: Chains of persistent contrastive divergence.
        checkpoint: As in :func:`fit`: ``run.safetensors`` for layer 1 stands for
            ``run.layer_1.safetensors``.
        **options: Others of :func:`fit`, such as ``validation``, ``track`` or ``progress_bar``.
            The history of a layer is about log p of its visible units.

    Returns:
        The network and the training runs.

    Raises:
        TypeError: A layer is neither a number nor a unit; as in :class:`DBN`.
        ValueError: As in :func:`fit` and :class:`DBN`.

    Example:
        >>> import jax, jax.numpy as jnp, optax, numpyro_ebm as ebm
        >>> data = jnp.tile(jnp.array([[1, 1, 0, 0], [0, 0, 1, 1]]), (50, 1))
        >>> result = ebm.fit_greedy(
        ...     jax.random.key(0), data, [3, 2], optim=optax.adam(0.05), num_epochs=5,
        ...     batch_size=20, progress_bar=False)
        >>> [layer.weights.shape for layer in result.layers]
        [(4, 3), (3, 2)]

    References:
        Hinton, Osindero & Teh (2006), "A Fast Learning Algorithm for Deep Belief Nets", Neural
        Computation 18, section 4; Bengio, Lamblin, Popovici & Larochelle (2007), "Greedy Layer-Wise
        Training of Deep Networks".
    """
    require_key(rng_key)
    data, stack, fits = jnp.asarray(data), tuple(layers), []
    for number, size in enumerate(hidden, start=len(stack) + 1):
        key_start, key_fit = jax.random.split(jax.random.fold_in(rng_key, number))
        start = _start(key_start, data, stack, visible, _as_unit(size))
        chosen = loss or _default_loss(start)
        result = fit(
            key_fit,
            SVI(_layer, _no_latents, optim, chosen),
            data,
            num_epochs=num_epochs,
            batch_size=batch_size,
            model_kwargs={
                "lower": stack,
                "start": start,
                "num_chains": _num_chains(chosen, num_chains),
            },
            checkpoint=None if checkpoint is None else _numbered(checkpoint, number),
            **options,
        )
        stack, fits = (*stack, _machine(start, result.params)), [*fits, result]
    return GreedyResult(DBN(stack), tuple(fits))


# ----- the NumPyro model of one layer --------------------------------------------------------


def _layer(batch: Array, *, lower: tuple[RBM, ...], start: RBM, num_chains: int | None) -> None:
    """The machine above ``lower``, which observes draws of their topmost hidden units."""
    params = {
        "weights": numpyro.param("weights", start.weights),
        "visible": numpyro.param("visible", lambda _: biases(start.visible_units)),
        "hidden": numpyro.param("hidden", lambda _: biases(start.hidden_units)),
    }
    rbm = _machine(start, params)
    value = _upward(numpyro.prng_key(), (*lower, rbm), batch)
    if num_chains is not None:
        persistent_chains("chains", num_chains, rbm)
    with numpyro.plate("rows", len(batch)):
        numpyro.sample("value", rbm, obs=value)


def _no_latents(batch: Array, **kwargs: Any) -> None:
    """Guide of a model without latent sites."""


def _machine(start: RBM, params: dict[str, Any]) -> RBM:
    visible = with_biases(start.visible_units, params["visible"])
    hidden = with_biases(start.hidden_units, params["hidden"])
    return RBM(params["weights"], visible, hidden)


def _upward(rng_key: Any, layers: tuple[RBM, ...], rows: Array) -> Array:
    """Draws of the visible units of the last of ``layers``."""
    if len(layers) == 1:
        return rows
    return DBN(layers).sample_hidden(rng_key, rows)[-1]


# ----- where it starts -----------------------------------------------------------------------


def _as_unit(size: Any) -> Unit:
    if isinstance(size, Unit):
        return size
    if isinstance(size, bool) or not isinstance(size, int) or size < 1:
        raise TypeError(
            f"fit_greedy: expected `hidden` to be positive numbers of units or units such as "
            f"ebm.units.Gaussian(jnp.zeros(30)); got {size!r} among them."
        )
    return Bernoulli(jnp.zeros(size))


def _start(
    rng_key: Key[Array, ""], data: Array, stack: tuple[RBM, ...], visible: Unit | None, hidden: Unit
) -> RBM:
    """The machine that training starts from."""
    key_weights, key_up = jax.random.split(rng_key)
    if stack:
        turned = _upside_down(key_weights, stack[-1], hidden, _moments(key_up, stack, data)[0])
        if turned is not None:
            return turned
        visible = stack[-1].hidden_units
    elif visible is None:
        visible = Bernoulli(jnp.zeros(data.shape[-1:]))
    if stack or isinstance(visible, Bernoulli):
        visible = visible.base_rate(*_moments(key_up, (*stack, _unfitted(visible)), data))
    noise = jax.random.normal(key_weights, visible.feature_shape + hidden.feature_shape)
    return RBM(_INIT_SCALE * noise, visible, hidden)


def _upside_down(
    rng_key: Key[Array, ""], rbm: RBM, hidden: Unit, mean: Float[Array, " f"]
) -> RBM | None:
    """The machine with its layers exchanged, of the size of ``hidden``; ``None`` if it has not it.

    Args:
        rng_key: Random key of the weights of further units.
        rbm: The machine.
        hidden: The hidden units that are wanted.
        mean: Means of the features of the visible units of ``rbm``.
    """
    bottom = rbm.visible_units
    if type(bottom) is not type(hidden):
        return None
    if bottom.feature_shape == hidden.feature_shape:
        rank = len(bottom.feature_shape)
        axes = (*range(rank, rbm.weights.ndim), *range(rank))
        return RBM(jnp.transpose(rbm.weights, axes), rbm.hidden_units, bottom)
    if not isinstance(bottom, Bernoulli) or not isinstance(rbm.hidden_units, Bernoulli):
        return None
    variance = mean * (1 - mean)
    kept, left = jnp.split(jnp.argsort(-variance), [min(hidden.shape + bottom.shape)])
    if variance[left].sum() > _NEGLIGIBLE * variance.sum():
        return None
    extra = hidden.shape[0] - len(kept)
    noise = _INIT_SCALE * jax.random.normal(rng_key, (rbm.num_hidden, extra))
    weights = jnp.concatenate([rbm.weights[kept].T, noise], axis=1)
    visible = rbm.hidden_units.logits + mean[left] @ rbm.weights[left]
    return RBM(weights, visible, jnp.pad(bottom.logits[kept], (0, extra)))


def _unfitted(visible: Unit) -> RBM:
    """Any machine over these units: only they are looked at."""
    return RBM(jnp.zeros((*visible.feature_shape, 1)), visible, jnp.zeros(1))


@partial(jax.jit)
def _moments(
    rng_key: Key[Array, ""], layers: tuple[RBM, ...], data: Array
) -> tuple[Float[Array, " f"], Float[Array, " f"]]:
    """Means, and mean squares, of the features of the units to be modelled."""
    unit = layers[-1].visible_units
    features = unit.features(_upward(rng_key, layers, data))
    return features.mean(0), (features**2).mean(0)


def _default_loss(start: RBM) -> PersistentContrastiveDivergence:
    linear = all(isinstance(u, LinearUnit) for u in (start.visible_units, start.hidden_units))
    return PersistentContrastiveDivergence(gradient="centered" if linear else "plain")


def _num_chains(loss: ELBO, num_chains: int) -> int | None:
    return num_chains if isinstance(loss, PersistentContrastiveDivergence) else None


def _numbered(path: str | os.PathLike[str], number: int) -> Path:
    path = Path(path)
    return path.with_name(f"{path.stem}.layer_{number}{path.suffix}")
