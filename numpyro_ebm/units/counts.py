"""Units with counts: Poisson."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Self

import jax
import jax.numpy as jnp
import numpyro.distributions as dist
from jax.scipy.special import gammaln
from jaxtyping import Array, ArrayLike, Float, Int, Key, Num
from numpyro.distributions import constraints

from numpyro_ebm.units.unit import SMALLEST_RATE, LinearUnit

_LARGEST_RATE = 1e9
"""Counts are drawn at no larger rate, which 32-bit integers hold."""


class Poisson(LinearUnit):
    r"""Counts :math:`x \in \{0, 1, 2, \dots\}` with energy :math:`-b^T x + \sum_i \log x_i!`.

    The conditional in a field is Poisson with rate :math:`e^{b + f}`. Cumulant function
    :math:`\sum_i e^{b_i + f_i}`: it grows faster than any square, so that beside Gaussian units no
    coupling is normalizable, and beside other nonnegative unbounded units only one that is not
    positive. Beside Bernoulli, Spin and Categorical units all are.

    Args:
        log_rate: Biases b of shape ``batch + (n,)``, log rates at no field.

    Raises:
        ValueError: ``log_rate`` is not finite, or has no unit dimension.

    Example:
        >>> import jax.numpy as jnp
        >>> unit = Poisson(jnp.log(jnp.array([2.0, 3.0])))
        >>> float(unit.log_partition(jnp.zeros(2)))  # the sum of the rates
        5.0

    References:
        Welling, Rosen-Zvi & Hinton (2004), "Exponential Family Harmoniums with an Application to
        Information Retrieval".
    """

    fields = ("log_rate",)
    log_rate: Array

    def __init__(self, log_rate: Float[ArrayLike, "*batch n"]) -> None:
        self._set(log_rate=log_rate)
        self._check_rank(1, "(..., n)")

    @property
    def support(self) -> constraints.Constraint:
        """Vectors of nonnegative integers."""
        return constraints.independent(constraints.nonnegative_integer, 1)

    @property
    def dtype(self) -> Any:
        """int32."""
        return jnp.int32

    @property
    def nonnegative(self) -> bool:
        """True."""
        return True

    @property
    def feature_scale(self) -> Any:
        """Infinite: the cumulant function grows faster than that of any Gaussian."""
        return jnp.full_like(self.log_rate, jnp.inf)

    def energy(self, value: Num[Array, "*batch n"]) -> Float[Array, "*batch"]:
        r""":math:`-b^T x + \sum_i \log x_i!`."""
        return super().energy(value) + gammaln(self.features(value) + 1).sum(-1)

    def unit_log_partition(self, field: Float[Array, "*batch n"]) -> Float[Array, "*batch n"]:
        r""":math:`e^{b + f}` of each unit."""
        return self.mean(field)

    def conditional(self, field: Float[Array, "*batch n"]) -> dist.Distribution:
        """Poisson with log rates b + f."""
        rate = jnp.maximum(self.mean(field), jnp.finfo(self.float_dtype).tiny)
        return dist.Poisson(rate).to_event(1)

    def sample(self, rng_key: Key[Array, ""], field: Float[Array, "*batch n"]) -> Int[Array, "..."]:
        """Draw from the conditional as int32; at a rate above 1e9, as at 1e9."""
        rate = jnp.minimum(self.mean(field), _LARGEST_RATE)
        return jax.random.poisson(rng_key, rate, dtype=self.dtype)

    def mean(self, field: Float[Array, "*batch n"]) -> Float[Array, "*batch n"]:
        r"""The rate :math:`e^{b + f}`."""
        return jnp.exp(self.log_rate + field)

    def base_rate(self, mean: Float[Array, " n"], second: Float[Array, " n"]) -> Poisson:
        r"""Biases :math:`\log m`."""
        return Poisson(jnp.log(jnp.maximum(mean, SMALLEST_RATE)))

    def tilt(self, log_factor: Callable[[Array], Array], shape: tuple[int, ...]) -> Self:
        """Refuse: the product is not Poisson.

        Raises:
            ValueError: Always.
        """
        raise ValueError(
            "Poisson: a likelihood term on these units leaves them no closed-form conditional. "
            "Observe the counts themselves (ebm.MultimodalRBM.condition, or `clamp` of "
            "ebm.BlockGibbs), or use Categorical units for small counts."
        )
