"""What is known of log Z, and the guard for where nothing is.

The density of an energy-based model is known up to log Z, which depends on the parameters. A
gradient that leaves it out is wrong without a sign of it, so it is made to raise.
"""

from __future__ import annotations

import sys
import warnings
from collections.abc import Callable
from functools import partial
from typing import Any

import jax
from jax.custom_derivatives import SymbolicZero
from jaxtyping import Array
from numpyro.infer.autoguide import AutoGuide
from numpyro.infer.util import log_likelihood

NORMALIZERS = ("guard", "exact", "ignore")
_LOG_LIKELIHOOD = log_likelihood
_AUTOGUIDE_SETUP = getattr(AutoGuide, "_setup_prototype", None)


class NormalizerError(ValueError):
    """Raised where a density without its log Z would silently give a wrong answer."""


def _guard_message(name: str, parameters: str) -> str:
    return (
        f"{name}: log_prob was differentiated with respect to its parameters ({parameters}), "
        "but log Z, which depends on them, is unknown: the result would be silently wrong. "
        "Ways out: train with a loss made for unnormalized models "
        "(SVI(..., loss=ebm.ContrastiveDivergence())); sum the states exactly with "
        f'{name}(..., normalizer="exact"); hold the parameters fixed; or, if the energy is meant '
        'as a plain factor of the joint density, pass normalizer="ignore".'
    )


@partial(jax.custom_jvp, nondiff_argnums=(0, 1))
def guard(name: str, labels: tuple[str, ...], leaves: tuple[Array, ...]) -> tuple[Array, ...]:
    """Identity whose differentiation with respect to any leaf raises.

    The one exception is the set-up of an autoguide, which differentiates the model's joint density
    once to see that the gradient is finite and throws the gradient away; training then
    differentiates the loss, where the guard holds.
    """
    return leaves


@partial(guard.defjvp, symbolic_zeros=True)
def _guard_jvp(name, labels, primals, tangents):
    touched = [
        label
        for label, tangent in zip(labels, tangents[0], strict=True)
        if not isinstance(tangent, SymbolicZero)
    ]
    if touched and not _called_from(_AUTOGUIDE_SETUP):
        raise NormalizerError(_guard_message(name, ", ".join(sorted(touched))))
    return primals[0], tangents[0]


def _called_from(function: Callable[..., Any] | None) -> bool:
    """Whether a function is on the call stack (asked at trace time only)."""
    code = getattr(function, "__code__", None)
    frame = sys._getframe(1) if code is not None else None
    while frame is not None:
        if frame.f_code is code:
            return True
        frame = frame.f_back
    return False


def in_host_log_likelihood() -> bool:
    """Whether ``numpyro.infer.log_likelihood``, from which ArviZ reads, is being evaluated.

    Model comparison (``az.loo``, ``az.waic``) takes what that function returns as a normalized
    log density. Nothing in its arguments tells it apart from a potential energy, where a constant
    may be left out, so the call stack is asked.
    """
    return _called_from(_LOG_LIKELIHOOD)


def warn_unnormalized(name: str) -> None:
    """Say why the log likelihood of a site is NaN."""
    warnings.warn(
        f"{name}: the log likelihood of an observed site is not normalized (log Z is unknown) and "
        'is reported as NaN, so that az.loo cannot mistake it; pass normalizer="exact" or log Z.',
        UserWarning,
        stacklevel=2,
    )
