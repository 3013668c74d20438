"""The normal distribution truncated to nonnegative values, accurate far into the tail."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpyro.distributions as dist
from jax.scipy.special import log_ndtr, ndtr, ndtri
from jaxtyping import Array, ArrayLike, Float, Key
from numpyro.distributions import constraints
from numpyro.distributions.util import promote_shapes, validate_sample

from numpyro_ebm.random_key import require_key

_TAIL = 5.0
"""Beyond this many scales the asymptotic inverse of the survival function is more accurate."""


def _upper_tail_normal(
    rng_key: Key[Array, ""], low: Float[Array, "*shape"]
) -> Float[Array, "*shape"]:
    r"""Draw a standard normal conditioned on exceeding ``low``, by inversion.

    The survival function is inverted directly up to ``_TAIL``. Beyond, the fixed point
    :math:`x^2 = a^2 - 2 \log u - 2 \log(x / a) - 2 \log(r(x) / r(a))` is iterated, with
    :math:`r(x) = 1 - 1/(x^2 + 2)` correcting the leading term of Mills' ratio.
    """
    tiny = jnp.finfo(low.dtype).tiny
    u = jax.random.uniform(rng_key, low.shape, low.dtype, minval=tiny)
    near = jnp.minimum(low, _TAIL)
    direct = -ndtri(jnp.maximum(u * ndtr(-near), tiny))

    far = jnp.maximum(low, _TAIL)

    def excess(x):  # (x^2 - a^2) / 2, small against a^2: keeps its digits
        ratio = (1 - 1 / (x**2 + 2)) / (1 - 1 / (far**2 + 2))
        return jnp.maximum(-jnp.log(u) - jnp.log(x / far) + jnp.log(ratio), 0)

    x = far
    for _ in range(4):
        shift = 2 * excess(x)
        x = far + shift / (far + jnp.sqrt(far**2 + shift))
    return jnp.where(low > _TAIL, x, jnp.maximum(direct, low))


class RectifiedNormal(dist.Distribution):
    r"""Normal distribution truncated to :math:`x \ge 0`.

    Density :math:`\exp(-(x - \mu)^2 / 2 \sigma^2) / (\sigma \sqrt{2 \pi} \, \Phi(\mu / \sigma))`.
    Unlike a truncation by cumulative probabilities it keeps its precision when :math:`\mu` lies
    many scales below zero.

    Args:
        loc: :math:`\mu`, the location before truncation.
        scale: :math:`\sigma > 0`, the scale before truncation.

    Example:
        >>> import jax
        >>> draws = RectifiedNormal(-50.0, 1.0).sample(jax.random.key(0), (1000,))
        >>> bool(abs(draws.mean() - 0.02) < 0.002)  # close to exponential with rate 50
        True
    """

    arg_constraints = {"loc": constraints.real, "scale": constraints.positive}

    def __init__(
        self, loc: ArrayLike, scale: ArrayLike = 1.0, *, validate_args: bool | None = None
    ) -> None:
        loc, scale = jnp.broadcast_arrays(*promote_shapes(loc, scale))
        dtype = jnp.result_type(loc, scale, jnp.float32)
        self.loc, self.scale = loc.astype(dtype), scale.astype(dtype)
        super().__init__(self.loc.shape, (), validate_args=validate_args)

    @property
    def support(self) -> constraints.Constraint:
        """Nonnegative reals."""
        return constraints.nonnegative

    def sample(self, key: Key[Array, ""] | None, sample_shape: tuple[int, ...] = ()) -> Array:
        """Draw by inverting the survival function."""
        low = jnp.broadcast_to(-self.loc / self.scale, self.shape(sample_shape))
        excess = _upper_tail_normal(require_key(key), low) - low
        return self.scale * jnp.maximum(excess, 0)

    @validate_sample
    def log_prob(self, value: ArrayLike, intermediates: Any = None) -> Array:
        """Log density in nats."""
        normal = dist.Normal(self.loc, self.scale, validate_args=False).log_prob(value)
        return normal - log_ndtr(self.loc / self.scale)

    @property
    def mean(self) -> Array:
        r""":math:`\mu + \sigma \phi(\mu / \sigma) / \Phi(\mu / \sigma)`."""
        return self.loc + self.scale * jax.grad(lambda t: log_ndtr(t).sum())(self.loc / self.scale)

    @property
    def variance(self) -> Array:
        r""":math:`\sigma^2 (1 - \lambda (\lambda + \mu / \sigma))` with the hazard lambda."""
        t = self.loc / self.scale
        hazard = jax.grad(lambda t: log_ndtr(t).sum())(t)
        return self.scale**2 * (1 - hazard * (hazard + t))
