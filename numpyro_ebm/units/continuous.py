"""Units with real values: Gaussian, and ReLU (a Gaussian truncated at zero)."""

from __future__ import annotations

from collections.abc import Callable
from typing import Self

import jax
import jax.numpy as jnp
import numpy as np
import numpyro.distributions as dist
from jax.scipy.special import log_ndtr
from jaxtyping import Array, ArrayLike, Float, Key
from numpyro.distributions import constraints
from numpyro.ops.provenance import eval_provenance
from numpyro.util import not_jax_tracer

from numpyro_ebm.units.rectified import RectifiedNormal
from numpyro_ebm.units.unit import Unit

_HALF_LOG_2PI = 0.5 * np.log(2 * np.pi)


class _Quadratic(Unit):
    r"""Units with energy :math:`(x - \mu)^2 / (2 \sigma^2)`."""

    fields = ("loc", "scale")
    loc: Array
    scale: Array

    def __init__(
        self, loc: Float[ArrayLike, "*batch n"], scale: Float[ArrayLike, "*batch n"] = 1.0
    ):
        self._set(loc=loc, scale=scale)
        self._check_rank(1, "(..., n)")
        if not_jax_tracer(self.scale) and np.any(np.asarray(self.scale) <= 0):
            raise ValueError(
                f"{type(self).__name__}: expected positive `scale`; got a smallest value of "
                f"{float(jnp.min(self.scale))}."
            )

    @property
    def feature_scale(self) -> Float[Array, "*batch n"]:
        """Standard deviation before truncation, at no field."""
        return self.scale

    def energy(self, value: Float[Array, "*batch n"]) -> Float[Array, "*batch"]:
        r""":math:`\sum_i (x_i - \mu_i)^2 / (2 \sigma_i^2)`."""
        return (0.5 * ((self.features(value) - self.loc) / self.scale) ** 2).sum(-1)

    def _shifted(self, field: Float[Array, "*batch n"]) -> Float[Array, "*batch n"]:
        return self.loc + self.scale**2 * field

    def _gaussian_log_partition(self, field: Float[Array, "*batch n"]) -> Float[Array, "..."]:
        quadratic = field * (self.loc + 0.5 * self.scale**2 * field)
        return quadratic + jnp.log(self.scale) + _HALF_LOG_2PI

    def in_field(self, field: Float[Array, "*batch n"]) -> Self:
        r"""Move the location to :math:`\mu + \sigma^2 f`."""
        loc = self._shifted(field)
        return type(self)._unflatten(None, (loc, jnp.broadcast_to(self.scale, loc.shape)))

    def interpolate(self, base: Self, beta: Float[ArrayLike, ""]) -> Self:
        """Mix precisions and precision-weighted means; the precision never falls to zero."""
        precision = (1 - beta) / base.scale**2 + beta / self.scale**2
        natural = (1 - beta) * base.loc / base.scale**2 + beta * self.loc / self.scale**2
        return type(self)._unflatten(None, (natural / precision, precision**-0.5))

    def tilt(self, log_factor: Callable[[Array], Array], shape: tuple[int, ...]) -> Self:
        """Absorb a factor whose logarithm is quadratic in each unit, such as a normal likelihood.

        Raises:
            ValueError: The log factor is not a concave-enough quadratic.
        """
        dtype = self.float_dtype

        def slope(x):
            return jax.grad(lambda y: log_factor(y).sum())(x)

        def curvature(x):
            return jax.jvp(slope, (x,), (jnp.ones_like(x),))[1]

        zero = jnp.zeros(shape, dtype)
        if eval_provenance(curvature, x=zero):
            raise ValueError(
                f"{type(self).__name__}: the likelihood term on these units is not Gaussian in "
                "them, so their conditional has no closed form. Sample this continuous site "
                "with NUTS, which differentiates its energy, instead of block Gibbs."
            )
        precision = 1 / self.scale**2 - curvature(zero)
        if not_jax_tracer(precision) and np.any(np.asarray(precision) <= 0):
            raise ValueError(
                f"{type(self).__name__}: expected a likelihood term that leaves the precision of "
                f"each unit positive; got a smallest precision of {float(jnp.min(precision)):.4g}."
            )
        natural = self.loc / self.scale**2 + slope(zero)
        return type(self)._unflatten(None, (natural / precision, precision**-0.5))


class Gaussian(_Quadratic):
    r"""Real units with energy :math:`(x - \mu)^2 / (2 \sigma^2)`.

    Cumulant function :math:`\sum_i f_i \mu_i + \sigma_i^2 f_i^2 / 2 + \log \sigma_i \sqrt{2\pi}`.

    Args:
        loc: :math:`\mu` of shape ``batch + (n,)``.
        scale: :math:`\sigma > 0`, the standard deviation at no field; broadcasts with ``loc``.

    Raises:
        ValueError: A parameter is not finite, or ``scale`` is not positive.

    Example:
        >>> import jax.numpy as jnp
        >>> unit = Gaussian(jnp.zeros(2), 1.0)
        >>> float(unit.log_partition(jnp.zeros(2)))  # log 2 pi
        1.8378...
    """

    @property
    def support(self) -> constraints.Constraint:
        """Real vectors."""
        return constraints.real_vector

    def unit_log_partition(self, field: Float[Array, "*batch n"]) -> Float[Array, "*batch n"]:
        r""":math:`f \mu + \sigma^2 f^2 / 2 + \log \sigma \sqrt{2\pi}` of each unit."""
        return self._gaussian_log_partition(field)

    def conditional(self, field: Float[Array, "*batch n"]) -> dist.Distribution:
        r"""Normal with mean :math:`\mu + \sigma^2 f` and standard deviation :math:`\sigma`."""
        loc = self._shifted(field)
        return dist.Normal(loc, jnp.broadcast_to(self.scale, loc.shape)).to_event(1)

    def sample(self, rng_key: Key[Array, ""], field: Float[Array, "*batch n"]) -> Array:
        """Draw from the conditional."""
        loc = self._shifted(field)
        return loc + self.scale * jax.random.normal(rng_key, loc.shape, loc.dtype)

    def mean(self, field: Float[Array, "*batch n"]) -> Float[Array, "*batch n"]:
        r""":math:`\mu + \sigma^2 f`."""
        return self._shifted(field)

    def base_rate(self, mean: Float[Array, " n"], second: Float[Array, " n"]) -> Gaussian:
        """Mean and standard deviation of the features, no narrower than the unit itself."""
        deviation = jnp.sqrt(jnp.maximum(second - mean**2, 0))
        return Gaussian(mean, jnp.maximum(deviation, self.scale))


class ReLU(_Quadratic):
    r"""Nonnegative units :math:`x \ge 0` with energy :math:`(x - \mu)^2 / (2 \sigma^2)`.

    The conditional is a Gaussian truncated at zero. Cumulant function of each unit: that of
    :class:`Gaussian` plus :math:`\log \Phi(\mu / \sigma + \sigma f)`.

    Args:
        loc: :math:`\mu` of shape ``batch + (n,)``, the location before truncation.
        scale: :math:`\sigma > 0`, the scale before truncation; broadcasts with ``loc``.

    Raises:
        ValueError: A parameter is not finite, or ``scale`` is not positive.

    Example:
        >>> import jax.numpy as jnp
        >>> unit = ReLU(jnp.zeros(1), 1.0)
        >>> float(unit.log_partition(jnp.zeros(1)))  # log sqrt(pi / 2)
        0.2257...

    References:
        Tubiana & Monasson (2017), "Emergence of Compositional Representations in Restricted
        Boltzmann Machines", Physical Review Letters 118 (the potential of ReLU units).
    """

    @property
    def nonnegative(self) -> bool:
        """True."""
        return True

    @property
    def support(self) -> constraints.Constraint:
        """Nonnegative vectors."""
        return constraints.independent(constraints.nonnegative, 1)

    def unit_log_partition(self, field: Float[Array, "*batch n"]) -> Float[Array, "*batch n"]:
        r"""Cumulant function of each unit, with :math:`\Phi` in log space."""
        return self._gaussian_log_partition(field) + log_ndtr(self._shifted(field) / self.scale)

    def conditional(self, field: Float[Array, "*batch n"]) -> dist.Distribution:
        r"""Normal with mean :math:`\mu + \sigma^2 f` and scale :math:`\sigma`, cut at zero."""
        loc = self._shifted(field)
        return RectifiedNormal(loc, jnp.broadcast_to(self.scale, loc.shape)).to_event(1)

    def base_rate(self, mean: Float[Array, " n"], second: Float[Array, " n"]) -> ReLU:
        """Scale by moments, no narrower than the unit itself; the location is the mean."""
        return ReLU(mean, jnp.maximum(jnp.sqrt(jnp.maximum(second - mean**2, 0)), self.scale))
