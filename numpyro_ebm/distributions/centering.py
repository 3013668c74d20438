"""Centering of restricted Boltzmann machines: of their parameters, and of their gradient."""

from __future__ import annotations

import copy
from typing import TYPE_CHECKING, Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, ArrayLike, Float

from numpyro_ebm.units.unit import LinearUnit, Unit

if TYPE_CHECKING:
    from numpyro_ebm.distributions.rbm_sweeps import RBMSweeps


def check_linear(rbm: RBMSweeps, owner: str) -> None:
    """Refuse layers whose energy is not linear in their only parameter.

    Raises:
        ValueError: A layer is not of Bernoulli, Spin, Categorical or Poisson units.
    """
    for name, unit in (("visible", rbm.visible_units), ("hidden", rbm.hidden_units)):
        if not isinstance(unit, LinearUnit):
            raise ValueError(
                f"{owner}: expected Bernoulli, Spin, Categorical or Poisson units on both sides, "
                "whose parameters enter the energy linearly; got "
                f"`{name}` {type(unit).__name__}."
            )


def uncentered(
    rbm: RBMSweeps, visible_offset: Float[ArrayLike, "*f"], hidden_offset: Float[ArrayLike, "*g"]
) -> tuple[Unit, Unit]:
    r"""Units of the plain RBM equal to one whose parameters are centered.

    :math:`b' = b - W \lambda` and :math:`c' = c - W^T \mu`, with the offsets
    :math:`\mu, \lambda` of visible and hidden features.

    Raises:
        ValueError: An offset does not fit.
    """
    offsets = []
    for name, unit, offset in (
        ("visible_offset", rbm.visible_units, visible_offset),
        ("hidden_offset", rbm.hidden_units, hidden_offset),
    ):
        shape, event = jnp.shape(offset), unit.feature_shape
        if shape != () and shape[-len(event) :] != event:
            raise ValueError(
                f"RBM.from_centered: expected `{name}` to be one number or of shape {event}; got "
                f"{shape}."
            )
        full = jnp.broadcast_to(offset, shape[: -len(event)] + event)
        offsets.append(full.reshape(*full.shape[: -len(event)], -1))
    matrix = rbm.weight_matrix
    down = jnp.einsum("...fg,...g->...f", matrix, offsets[1], precision="highest")
    up = jnp.einsum("...fg,...f->...g", matrix, offsets[0], precision="highest")
    return rbm.visible_units.in_field(-down), rbm.hidden_units.in_field(-up)


def with_centered_gradient(
    rbm: RBMSweeps, visible_offset: Float[Array, " f"], hidden_offset: Float[Array, " g"]
) -> RBMSweeps:
    """Return the same RBM, whose gradient in its parameters is that of the centered one.

    Raises:
        ValueError: A layer is not linear, there are batch dimensions, or when differentiated with
            respect to some but not all of weights and biases.
    """
    check_linear(rbm, 'gradient="centered" or "enhanced"')
    if rbm.batch_shape:
        raise ValueError(
            'gradient="centered" or "enhanced": expected an RBM without batch dimensions; got '
            f"batch shape {rbm.batch_shape}."
        )
    units: list[Any] = [rbm.visible_units, rbm.hidden_units]
    biases = [jnp.asarray(getattr(unit, unit.fields[0])) for unit in units]
    matrix, *flat = _centered(
        rbm.weight_matrix, *(bias.reshape(-1) for bias in biases), visible_offset, hidden_offset
    )
    visible, hidden = (
        type(unit)(new.reshape(old.shape))
        for unit, new, old in zip(units, flat, biases, strict=True)
    )
    same = copy.copy(rbm)
    same.weights = matrix.reshape(rbm.weights.shape)
    same.visible_units, same.hidden_units = visible, hidden
    same.__dict__.pop("_attached", None)  # belongs to the other object
    return same


@jax.custom_vjp
def _centered(
    weights: Float[Array, "f g"],
    visible: Float[Array, " f"],
    hidden: Float[Array, " g"],
    visible_offset: Float[Array, " f"],
    hidden_offset: Float[Array, " g"],
) -> tuple[Array, Array, Array]:
    """Identity of the first three arguments."""
    return weights, visible, hidden


def _centered_fwd(*arguments: Any) -> Any:
    trained = dict(zip(("weights", "visible", "hidden"), arguments, strict=False))
    missing = [name for name, argument in trained.items() if not argument.perturbed]
    if 0 < len(missing) < 3:
        raise ValueError(
            'gradient="centered" or "enhanced": expected weights, visible and hidden biases that '
            f"are all trained, because the gradient mixes them; {', '.join(missing)} is constant. "
            'Train it too, or use gradient="plain".'
        )
    values = [argument.value for argument in arguments]
    return tuple(values[:3]), tuple(values[3:])


def _centered_bwd(offsets: Any, gradients: Any) -> Any:
    weights, visible, hidden = (_instantiate(gradient) for gradient in gradients)
    mu, center = offsets
    weights = weights - jnp.outer(mu, hidden) - jnp.outer(visible, center)
    visible, hidden = visible - weights @ center, hidden - weights.T @ mu
    return weights, visible, hidden, jnp.zeros_like(mu), jnp.zeros_like(center)


def _instantiate(gradient: Any) -> Array:
    if isinstance(gradient, jax.custom_derivatives.SymbolicZero):
        return jnp.zeros(gradient.shape, gradient.dtype)
    return gradient


_centered.defvjp(_centered_fwd, _centered_bwd, symbolic_zeros=True)
