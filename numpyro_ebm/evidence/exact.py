"""Log Z by summing every state, or by quadrature."""

from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float
from numpyro.distributions import Distribution

from numpyro_ebm.base import EnergyDistribution
from numpyro_ebm.evidence.model import ModelTarget
from numpyro_ebm.evidence.quadrature import integrate_model
from numpyro_ebm.evidence.result import Evidence
from numpyro_ebm.evidence.target import check_target, in_float64, is_traced, unpack_mcmc


def exact(
    target: Any,
    *,
    model_args: Sequence[Any] = (),
    model_kwargs: Mapping[str, Any] | None = None,
) -> Evidence:
    r"""Compute :math:`\log Z = \log \sum_x e^{-E(x)}` by summing (integrating) all states.

    The log evidence of a NumPyro model with at most three unconstrained latent dimensions is found
    by quadrature, to about 1e-8 nats where the density is smooth; ``diagnostics["change"]`` is its
    last change.

    For distributions: exact up to rounding. With concrete parameters the sum runs in float64
    whatever their own type, and the result holds NumPy numbers. Under a JAX transformation
    (``grad``, ``jit``, ``vmap``) it runs in the parameters' own type, the result holds JAX arrays,
    and log Z is differentiable in every parameter. What the target's ``normalizer`` says does not
    matter.

    Args:
        target: An energy-based distribution that can sum its states: an RBM whose smaller layer
            has at most 2^20 states, or whose layers are both Gaussian; a pairwise model with as
            many joint states, or a lattice with at most 2^12 across one of its axes. Or a NumPyro
            model, or a finished ``MCMC`` (for its model and arguments).
        model_args: Arguments of a model.
        model_kwargs: Likewise.

    Returns:
        Log Z in nats with a standard error of 0, both of the target's batch shape.

    Raises:
        TypeError: ``target`` is none of these.
        ValueError: A model has more than three latent dimensions, subsampled plates, no latent
            sites, or discrete ones that it does not mark for enumeration.
        NormalizerError: The target has too many states, or no sum of them is known.

    Warns:
        EvidenceWarning: The quadrature has not settled.

    Example:
        >>> import jax, jax.numpy as jnp, numpyro_ebm as ebm
        >>> rbm = ebm.RBM(jnp.zeros((3, 2)), jnp.zeros(3), jnp.zeros(2))
        >>> ebm.evidence.exact(rbm).log_evidence  # log 2^5
        3.465...
        >>> def log_z(weights):
        ...     return ebm.evidence.exact(ebm.RBM(weights, jnp.zeros(3), jnp.zeros(2))).log_evidence
        >>> jax.grad(log_z)(jnp.zeros((3, 2)))[0]  # the mean of v h, one half times one half
        Array([0.25, 0.25], dtype=float32)

    References:
        Salakhutdinov & Murray (2008), "On the Quantitative Analysis of Deep Belief Networks",
        section 5 (exact log Z of models with few hidden units).
    """
    target, model_args, model_kwargs = unpack_mcmc("exact", target, model_args, model_kwargs)
    if callable(target) and not isinstance(target, type | Distribution):
        return integrate_model(ModelTarget("exact", target, model_args, model_kwargs))
    target = check_target(target, "exact")
    if is_traced(target):
        log_z = target.exact_log_z()
        return Evidence(log_z, jnp.zeros_like(log_z), "exact")
    log_z = in_float64(_exact_log_z, target)
    if log_z.ndim == 0:
        return Evidence(float(log_z), 0.0, "exact")
    return Evidence(log_z, np.zeros_like(log_z), "exact")


@jax.jit
def _exact_log_z(target: EnergyDistribution) -> Float[Array, "*batch"]:
    return target.exact_log_z()
