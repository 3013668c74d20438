"""Annealed importance sampling."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Literal

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, ArrayLike, Float, Key

from numpyro_ebm.base import Kernel
from numpyro_ebm.evidence.annealing import anneal, log_z0
from numpyro_ebm.evidence.problem import Problem, problem_of
from numpyro_ebm.evidence.result import Evidence, warn_of
from numpyro_ebm.evidence.settings import at_least, split_key
from numpyro_ebm.evidence.weights import summarize_weights

REMEDY = "Use more temperatures (or a base nearer to the target) before more particles."


def ais(
    rng_key: Key[Array, ""],
    target: Any,
    *,
    model_args: Sequence[Any] = (),
    model_kwargs: Mapping[str, Any] | None = None,
    base: Any = None,
    kernel: Kernel | None = None,
    num_temperatures: int = 1000,
    num_particles: int = 100,
    betas: Float[ArrayLike, " num_temperatures"] | None = None,
    schedule: Literal["linear", "sigmoid", "adaptive"] | None = None,
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

    For a NumPyro model Z is the marginal likelihood p(y), and the path leads from the prior to the
    posterior with the observed sites scaled, :math:`p(y \mid \theta)^\beta p(\theta)`, in the
    unconstrained space of all latent sites. A pilot run of particles then chooses the temperatures,
    and the scale and step size of Hamiltonian moves at each; they are fixed before the run that
    counts, which stays unbiased. Models are evaluated in JAX's present precision; a warning says
    where float32 is not enough (``numpyro.enable_x64()`` before anything else gives float64).

    Args:
        rng_key: Random key.
        target: An energy-based distribution with batch shape ``()``, a NumPyro model whose latent
            sites are continuous with proper priors, or a finished ``MCMC`` (for its model).
        model_args: Arguments of the model; an ``MCMC`` has its own.
        model_kwargs: Likewise.
        base: Where the path of a distribution starts: what ``target.default_path`` takes (for an
            RBM data of shape ``(n, num_visible)`` for its base rates, a visible unit, or ``None``
            for the model's own mean; for every distribution of this package a normalized one near
            it, such as a NADE), or a :class:`~numpyro_ebm.protocols.Path` to use as it is.
        kernel: Moves the particles: a kernel on the distributions of the path such as
            ``kernels.GibbsSweeps(2)`` or ``kernels.MALAStep(0.1)``, or NumPyro's ``HMC`` or
            ``NUTS`` (for their settings; scale and step size are then tuned for a model, and those
            given for a distribution). ``None`` is the distribution's own Gibbs step, and for a
            model Hamiltonian moves of four leapfrog steps. It starts afresh from the particles'
            values at every temperature.
        num_temperatures: Number of inverse temperatures, 0 and 1 among them.
        num_particles: Number of independent particles.
        betas: Inverse temperatures of your own, increasing from 0 to 1, instead of
            ``num_temperatures`` of a schedule.
        schedule: ``"linear"``, equally spaced (the default for a distribution); ``"sigmoid"``,
            dense at both ends; ``"adaptive"``, steps of equal conditional effective sample size in
            a pilot run (the default for a model).

    Returns:
        Log Z in nats with ``log_weights``, ``betas``, ``trajectory`` and ``log_z0``.

    Raises:
        TypeError: ``target`` is none of these, ``rng_key`` no random key, or an argument is
            traced: the result is made of NumPy arrays, outside ``jit`` and ``vmap``.
        ValueError: A count is too small, ``betas`` do not increase from 0 to 1, ``base`` does
            not fit, the target has a batch shape, or the model an improper prior, subsampled
            plates or discrete latent sites that it does not mark for enumeration.
        NormalizerError: Log Z of an energy-based site of the model is unknown.

    Warns:
        EvidenceWarning: Few effective particles, a heavy tail, or weights that are not finite.

    Example:
        >>> import jax, jax.numpy as jnp, numpyro_ebm as ebm
        >>> rbm = ebm.RBM(0.3 * jnp.ones((4, 3)), jnp.zeros(4), -jnp.ones(3))
        >>> estimate = ebm.evidence.ais(jax.random.key(0), rbm, num_temperatures=200)
        >>> truth = ebm.evidence.exact(rbm).log_evidence
        >>> bool(abs(estimate.log_evidence - truth) < 4 * estimate.std_error), estimate.ok
        (True, True)

        The evidence of a NumPyro model:

        >>> import numpyro, numpyro.distributions as dist
        >>> def model(y):
        ...     mu = numpyro.sample("mu", dist.Normal(0, 1))
        ...     numpyro.sample("y", dist.Normal(mu, 1), obs=y)
        >>> estimate = ebm.evidence.ais(
        ...     jax.random.key(0), model, model_args=(jnp.array(0.5),), num_temperatures=100
        ... )
        >>> truth = dist.Normal(0, jnp.sqrt(2.0)).log_prob(0.5)
        >>> bool(abs(estimate.log_evidence - truth) < 4 * estimate.std_error)
        True

    References:
        Neal (2001), "Annealed importance sampling", Statistics and Computing 11, sections 2-3;
        Salakhutdinov & Murray (2008), "On the Quantitative Analysis of Deep Belief Networks",
        section 4.1.
    """
    count = at_least("ais", num_particles, 1, "num_particles")
    key_path, key_run = split_key("ais", rng_key, target)
    problem = problem_of(
        "ais", target, model_args, model_kwargs, base=base, kernel=kernel, rng_key=key_path
    )
    problem, temperatures = problem.tuned(key_path, betas, schedule, num_temperatures)
    return forward(problem, key_run, temperatures, count)


def forward(
    problem: Problem,
    rng_key: Key[Array, ""],
    betas: Float[np.ndarray, " num_temperatures"],
    num_particles: int,
    *,
    issue: bool = True,
) -> Evidence:
    """Run annealed importance sampling with all settings fixed.

    Args:
        problem: Path and kernel.
        rng_key: Random key.
        betas: Inverse temperatures.
        num_particles: Number of particles.
        issue: Whether doubts are issued as warnings, at the line that called the caller.
    """
    trajectory = anneal(
        problem.caller,
        problem.path,
        problem.kernel,
        rng_key,
        jnp.asarray(betas, problem.dtype),
        num_particles,
    )
    start = log_z0(problem.path)
    summary = summarize_weights(trajectory[:, -1], "ais", REMEDY)
    estimate = start + summary.log_mean
    doubts = summary.warnings + problem.doubts(estimate, summary.std_error)
    if issue:
        warn_of(doubts, 4)
    return Evidence(
        estimate,
        summary.std_error,
        "ais",
        trajectory[:, -1],
        summary.diagnostics,
        doubts,
        betas,
        trajectory,
        start,
        problem.data_hash,
    )
