"""Annealed importance sampling."""

import operator
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, ArrayLike, Float, Float64, Key
from numpyro.util import is_prng_key

from numpyro_ebm.base import EnergyDistribution, Kernel
from numpyro_ebm.evidence.annealing import anneal, log_z0
from numpyro_ebm.evidence.result import Evidence
from numpyro_ebm.evidence.target import check_target, is_traced

_REMEDY = "Use more temperatures (or a base nearer to the target) before more particles."


def ais(
    rng_key: Key[Array, ""],
    target: EnergyDistribution,
    *,
    model_args: Sequence[Any] = (),
    model_kwargs: Mapping[str, Any] | None = None,
    base: Any = None,
    kernel: Kernel | None = None,
    num_temperatures: int = 1000,
    num_particles: int = 100,
    betas: Float[ArrayLike, " num_temperatures"] | None = None,
) -> Evidence:
    r"""Estimate log Z by annealed importance sampling from a base with known log Z.

    Particles drawn exactly at :math:`\beta_0 = 0` are moved by one step of a Markov kernel at
    each inverse temperature in between, up to :math:`\beta_K = 1`:

    .. math:: \log w = \sum_{k=0}^{K-1} E_{\beta_k}(x_k) - E_{\beta_{k+1}}(x_k), \qquad
        \hat Z = \frac{Z_0}{n} \sum_i w_i .

    Z is estimated without bias for any number of temperatures; log Z with a bias down of about
    half the squared standard error (a stochastic lower bound). The standard error is the delta
    method's. It knows only of what the particles have seen: where all of them miss a mode, or the
    path has a first-order transition, nothing here shows it. Start from data where you have some:
    they know of modes that short chains of the model do not find. Energies are differenced in the
    model's own floating type and summed in float64.

    Args:
        rng_key: Random key.
        target: An energy-based distribution with batch shape ``()``.
        model_args: For NumPyro models, which are not supported yet; must be empty.
        model_kwargs: Likewise.
        base: Where the path starts: what ``target.default_path`` takes (for an RBM data of shape
            ``(n, num_visible)`` for its base rates, a visible unit, or ``None`` for the model's
            own mean), or a :class:`~numpyro_ebm.base.Path` to use as it is.
        kernel: Moves the particles; ``None`` is the model's own Gibbs step. It starts afresh
            from the particles' values at every temperature.
        num_temperatures: Number of inverse temperatures, 0 and 1 among them, equally spaced.
        num_particles: Number of independent particles.
        betas: Inverse temperatures of your own, increasing from 0 to 1, instead of
            ``num_temperatures`` equally spaced ones.

    Returns:
        Log Z in nats with ``log_weights``, ``betas``, ``trajectory`` and ``log_z0``.

    Raises:
        TypeError: ``target`` is no energy-based distribution, ``rng_key`` no random key, or an
            argument is traced: the result is made of NumPy arrays, outside ``jit`` and ``vmap``.
        ValueError: A count is too small, ``betas`` do not increase from 0 to 1, ``base`` does
            not fit, or the target has a batch shape.

    Warns:
        EvidenceWarning: Few effective particles, a heavy tail, or weights that are not finite.

    Example:
        >>> import jax, jax.numpy as jnp, numpyro_ebm as ebm
        >>> rbm = ebm.RBM(0.3 * jnp.ones((4, 3)), jnp.zeros(4), -jnp.ones(3))
        >>> estimate = ebm.evidence.ais(jax.random.key(0), rbm, num_temperatures=200)
        >>> truth = ebm.evidence.exact(rbm).log_evidence
        >>> bool(abs(estimate.log_evidence - truth) < 4 * estimate.std_error), estimate.ok
        (True, True)

    References:
        Neal (2001), "Annealed importance sampling", Statistics and Computing 11, sections 2-3;
        Salakhutdinov & Murray (2008), "On the Quantitative Analysis of Deep Belief Networks",
        section 4.1.
    """
    target = _check_target(target, model_args, model_kwargs)
    _check_kernel(kernel)
    count = _at_least(num_particles, 1, "num_particles")
    schedule = _check_betas(betas, num_temperatures)
    key_path, key_run = _split(rng_key, target)
    path = base if _is_path(base) else target.default_path(key_path, base)
    temperatures = jnp.asarray(schedule, _floating_type(target))
    trajectory = anneal(path, kernel, key_run, temperatures, count)
    return Evidence.from_log_weights(
        trajectory[:, -1],
        "ais",
        log_z0=log_z0(path),
        remedy=_REMEDY,
        betas=schedule,
        trajectory=trajectory,
    )


# ----- checks ------------------------------------------------------------------------------


def _check_target(
    target: Any, model_args: Sequence[Any], model_kwargs: Mapping[str, Any] | None
) -> EnergyDistribution:
    target = check_target(target, "ais")
    if model_args or model_kwargs:
        raise TypeError(
            f"ais: expected no `model_args` or `model_kwargs` with `target` {type(target).__name__}"
            f", which takes none; got {model_args!r} and {model_kwargs!r}."
        )
    if target.batch_shape:
        raise ValueError(
            f"ais: expected a `target` with batch shape (); got {target.batch_shape}. Estimate "
            "the members of a batch one by one."
        )
    return target


def _split(rng_key: Any, target: EnergyDistribution) -> Key[Array, "2"]:
    """Two keys, made certain to be concrete."""
    if not is_prng_key(rng_key):
        came = f"an array of shape {rng_key.shape}" if hasattr(rng_key, "shape") else repr(rng_key)
        raise TypeError(
            f"ais: expected `rng_key` to be one random key, such as jax.random.key(0); got {came}."
        )
    keys = jax.random.split(rng_key)
    if is_traced((keys, target)):
        raise TypeError(
            "ais: expected to be called outside of jit, vmap and grad, with concrete arrays; got "
            "traced ones. Its loop is compiled already."
        )
    return keys


def _check_kernel(kernel: Any) -> None:
    methods = ("init", "step", "value")
    if kernel is not None and not all(callable(getattr(kernel, name, None)) for name in methods):
        raise TypeError(
            f"ais: expected `kernel` with methods {', '.join(methods)} (see "
            f"numpyro_ebm.base.Kernel), or None; got {type(kernel).__name__}."
        )


def _floating_type(target: EnergyDistribution) -> Any:
    types = [jnp.result_type(leaf) for leaf in jax.tree.leaves(target)]
    return jnp.result_type(*[t for t in types if jnp.issubdtype(t, jnp.floating)] or [float])


def _at_least(value: Any, smallest: int, name: str) -> int:
    try:
        number = operator.index(value)
    except TypeError as error:
        raise TypeError(f"ais: expected an integer `{name}`; got {value!r}.") from error
    if number < smallest:
        raise ValueError(f"ais: expected `{name}` of at least {smallest}; got {number}.")
    return number


def _check_betas(betas: Any, num_temperatures: Any) -> Float64[np.ndarray, " num_temperatures"]:
    if betas is None:
        return np.linspace(0.0, 1.0, _at_least(num_temperatures, 2, "num_temperatures"))
    try:
        schedule = np.asarray(betas, np.float64)
    except (TypeError, ValueError) as error:
        raise TypeError(f"ais: expected an array for `betas`; got {betas!r}.") from error
    ends = schedule.ndim == 1 and schedule.size >= 2 and (schedule[0], schedule[-1]) == (0, 1)
    if not ends or not np.all(np.diff(schedule) > 0):
        raise ValueError(
            f"ais: expected `betas` to increase from 0 to 1; got {np.array2string(schedule)}."
        )
    return schedule


def _is_path(base: Any) -> bool:
    return all(hasattr(base, name) for name in ("at", "sample", "log_weight_increment"))
