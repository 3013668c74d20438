"""Whether the auxiliary chains of an exchange kernel are long enough."""

from __future__ import annotations

import warnings
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpyro.diagnostics import effective_sample_size

_LIMIT = 3.0
"""Standard errors from which a drift is taken for real."""
_FEW = 100
"""Effective draws below which nothing can be said."""


@dataclass(frozen=True)
class AuxiliaryDrift:
    r"""How far auxiliary chains still move in their second half.

    Attributes:
        mean: Mean change of the log ratio :math:`\log f(w; \theta) / f(w; \theta')` from halfway
            to the end of the chains, in nats; 0 if the first half has forgotten the data.
        std_error: Its standard error, with the effective sample size.
        ess: Effective sample size of the changes.
        warnings: Reasons for doubt; each was also issued as a ``UserWarning``.
    """

    mean: float
    std_error: float
    ess: float
    warnings: tuple[str, ...]

    @property
    def z_score(self) -> float:
        """Mean in standard errors; 0 where the draws are exact."""
        return self.mean / self.std_error if self.std_error > 0 else 0.0

    @property
    def ok(self) -> bool:
        """Whether there is no warning."""
        return not self.warnings


def auxiliary_drift(mcmc: Any) -> AuxiliaryDrift:
    r"""Say whether the length of the auxiliary chains of :class:`~numpyro_ebm.Exchange` matters.

    Where auxiliary data w come from a chain that starts at the data, the log ratio that decides
    on acceptance is also taken halfway. Chains whose first half has forgotten the start have the
    same distribution in the end, and the mean of the difference is zero; a difference of more
    than three standard errors says that half the length is too short, and casts doubt on the
    whole. Exact draws have none.

    Args:
        mcmc: A finished ``MCMC`` run of ``Exchange``.

    Returns:
        The mean drift with its standard error, and warnings.

    Raises:
        TypeError: ``mcmc`` is no run of ``Exchange``.

    Warns:
        UserWarning: The length matters, or there are too few draws to say.

    Example:
        >>> import jax, numpyro, numpyro.distributions as dist, numpyro_ebm as ebm
        >>> from numpyro.infer import MCMC
        >>> def model(s):
        ...     coupling = numpyro.sample("coupling", dist.Normal(0, 0.5))
        ...     numpyro.sample("s", ebm.Ising.lattice((4, 4), coupling), obs=s)
        >>> s = ebm.Ising.lattice((4, 4), 0.2).sample(jax.random.key(0))
        >>> kernel = ebm.Exchange(model, auxiliary=ebm.kernels.AuxiliaryChain(50))
        >>> mcmc = MCMC(kernel, num_warmup=100, num_samples=500, progress_bar=False)
        >>> mcmc.run(jax.random.key(1), s)
        >>> ebm.auxiliary_drift(mcmc).ok
        True
    """
    get_fields = getattr(mcmc, "get_extra_fields", None)
    drifts = None if get_fields is None else get_fields(True).get("auxiliary_drift")
    if drifts is None:
        raise TypeError(
            "auxiliary_drift: expected `mcmc` to be a finished MCMC run of ebm.Exchange; got "
            f"{type(mcmc).__name__} without a field 'auxiliary_drift'."
        )
    drifts = np.asarray(drifts, np.float64)
    mean, spread = float(drifts.mean()), float(drifts.std())
    if spread == 0:
        return AuxiliaryDrift(mean, 0.0, float(drifts.size), ())
    ess = float(min(effective_sample_size(drifts), drifts.size))
    std_error = spread / ess**0.5
    doubts = []
    if ess < _FEW:
        doubts.append(
            f"auxiliary_drift: {ess:.0f} effective draws are too few to say whether the length of "
            "the auxiliary chains matters. Run longer."
        )
    if abs(mean) > _LIMIT * std_error:
        doubts.append(
            f"auxiliary_drift: the log ratio still drifts by {mean:.3g} +- {std_error:.2g} nats in "
            "the second half of the auxiliary chains: their length matters, and the posterior is "
            "biased. Use AuxiliaryChain with more steps or a better kernel, or exact draws."
        )
    for message in doubts:
        warnings.warn(message, UserWarning, stacklevel=2)
    return AuxiliaryDrift(mean, std_error, ess, tuple(doubts))
