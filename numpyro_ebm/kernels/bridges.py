"""Auxiliary data moved through models between two parameters."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Key, Num

from numpyro_ebm.base import unwrap, widen
from numpyro_ebm.kernels.gibbs_with_gradients import GibbsWithGradientsStep
from numpyro_ebm.kernels.intractable import IntractableDensity, Values
from numpyro_ebm.protocols import Kernel

Vector = Float[Array, " n"]
LogFactor = Callable[[Vector, Values], Any]


def bridge(
    rng_key: Key[Array, ""],
    target: IntractableDensity,
    values: Values,
    start: Vector,
    end: Vector,
    *,
    num_bridges: int,
    log_factor: LogFactor,
    kernel: Kernel | None = None,
) -> tuple[Values, Any]:
    r"""Carry draws at one parameter to another through models in between.

    With :math:`u_k` equally spaced between :math:`u_0` (the start) and :math:`u_{K+1}` (the end),
    moves :math:`w_{k-1} \to w_k` that are reversible for :math:`f(\cdot; u_k)`, and an exact
    :math:`w_0`,

    .. math:: \log r = \sum_{k=0}^K \log \frac{f(w_k; u_{k+1})}{f(w_k; u_k)}, \qquad
        \mathrm E\, r = \frac{Z(u_{K+1})}{Z(u_0)}

    Args:
        rng_key: Random key.
        target: The density of the parameters.
        values: Draws at the start.
        start: Parameters of the draws.
        end: Parameters to go to.
        num_bridges: K, models in between.
        log_factor: Log f of values at parameters in nats, summed as it is wanted.
        kernel: Reversible moves; ``None`` for sweeps, see :func:`move`.

    Returns:
        The values in the end, and log r in nats.

    References:
        Murray, Ghahramani & MacKay (2006), "MCMC for doubly-intractable distributions", UAI,
        section 4; Neal (2001), "Annealed importance sampling".
    """
    key_direction, key_moves = jax.random.split(rng_key)
    forward = jax.random.bernoulli(key_direction)  # one order for all: its reverse is as likely

    def between(k: Any) -> Vector:
        return start + (k / (num_bridges + 1)) * (end - start)

    log_ratio = log_factor(between(1), values) - log_factor(start, values)
    if num_bridges == 0:
        return values, log_ratio

    def step(carry: Any, k: Any) -> tuple[Any, None]:
        values, total = carry
        key, here, onward = jax.random.fold_in(key_moves, k), between(k), between(k + 1)
        values = move(key, target, here, values, forward, kernel)
        total = total + log_factor(onward, values) - log_factor(here, values)
        return (values, total), None

    (values, log_ratio), _ = jax.lax.scan(step, (values, log_ratio), jnp.arange(1, num_bridges + 1))
    return values, log_ratio


def move(
    rng_key: Key[Array, ""],
    target: IntractableDensity,
    vector: Vector,
    values: Values,
    forward: Any,
    kernel: Kernel | None,
) -> Values:
    """Move values of all sites by a kernel that is reversible for their models at u.

    Without ``kernel``: Gibbs steps where these are reversible; sweeps in one order or, as likely,
    its reverse where no units are hidden; single informed flips, as many as units, elsewhere.
    """
    moved = {}
    for number, (name, site) in enumerate(target.sites(vector).items()):
        model: Any = unwrap(site["fn"])
        key = jax.random.fold_in(rng_key, number)
        moved[name] = _move(key, model, values[name], forward, kernel)
    return moved


def _move(
    rng_key: Key[Array, ""], model: Any, value: Num[Array, "*shape"], forward: Any, kernel: Any
) -> Num[Array, "*shape"]:
    if kernel is None and (model.has_reversible_gibbs or not getattr(model, "num_hidden", 0)):
        chain = model.chain_at(value)
        if model.has_reversible_gibbs:
            return widen(model.visible(model.gibbs_step(rng_key, chain)))
        steps = model.gibbs_step, model.backward_gibbs_step
        return widen(model.visible(jax.lax.cond(forward, *steps, rng_key, chain)))
    if kernel is None:
        kernel = GibbsWithGradientsStep(num_flips=math.prod(model.event_shape))
    state, _ = kernel.step(rng_key, kernel.init(value, model), model)
    return widen(kernel.value(state, model))


def check_bridge_kernel(owner: str, kernel: Any) -> Any:
    """Return a kernel that is known to be reversible, or ``None``.

    Raises:
        ValueError: It is not.
    """
    if kernel is not None and not getattr(kernel, "is_reversible", False):
        raise ValueError(
            f"{owner}: expected a reversible `bridge_kernel`, such as kernels.SwendsenWangStep(); "
            f"got {type(kernel).__name__}."
        )
    return kernel
