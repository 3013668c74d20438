"""Gibbs-Langevin sampling of restricted Boltzmann machines with continuous visible units."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Key, Num

from numpyro_ebm.kernels.langevin import LangevinStep, check_continuous, check_count, check_positive
from numpyro_ebm.kernels.mala import MALAStep
from numpyro_ebm.kernels.ula import ULAStep


class GibbsLangevinInfo(NamedTuple):
    """What a Gibbs-Langevin step reports.

    Attributes:
        accept_prob: Mean acceptance probability of its Langevin substeps.
        energy: Energy of the target at the new visible units, in nats.
    """

    accept_prob: Float[Array, "*batch"]
    energy: Float[Array, "*batch"]


class GibbsLangevinState(NamedTuple):
    """State of Gibbs-Langevin chains; the hidden units are drawn anew in each step.

    Attributes:
        value: Visible units.
        accept_prob: Mean acceptance probability of the last step.
    """

    value: Float[Array, "*batch n"]
    accept_prob: Float[Array, "*batch"]


class _GivenHidden(NamedTuple):
    """p(v | h) of visible units in multiples of their scales, as a target of Langevin steps."""

    conditional: Any
    scale: Float[Array, "*batch n"]

    @property
    def batch_shape(self) -> tuple[int, ...]:
        return self.conditional.batch_shape

    @property
    def event_shape(self) -> tuple[int, ...]:
        return self.conditional.event_shape

    @property
    def support(self) -> Any:
        return self.conditional.support

    @property
    def unit_states(self) -> None:
        return None

    def energy(self, value: Num[Array, "*batch n"]) -> Float[Array, "*batch"]:
        return -self.conditional.log_prob(self.scale * value)


@dataclass(frozen=True)
class GibbsLangevinStep:
    r"""Hidden units by Gibbs, visible units by Langevin steps, as pure functions.

    .. math:: h \sim p(h \mid v), \qquad v' = v - \tfrac{\epsilon}{2} \sigma^2 \nabla_v E(v, h)
        + \sqrt{\epsilon}\, \sigma\, \xi, \quad \xi \sim N(0, I),

    the second ``num_steps`` times at fixed h, with the scales :math:`\sigma` of the visible units.
    With ``adjust`` each move is accepted or refused by the Metropolis-Hastings rule: the target
    stays invariant. Without it the kernel is **biased**: the conditional variance of a Gaussian
    unit comes out as :math:`\sigma^2 / (1 - \epsilon / 4)`, and above :math:`\epsilon = 4` the
    chain diverges. Liao et al. adjust a whole step at once; here every substep is.

    Block Gibbs draws all visible units of such a model from their exact conditional at the cost of
    one substep, so it is the kernel to use for samples. This one stays closer to where a chain is,
    as the negative phase of :class:`~numpyro_ebm.ContrastiveDivergence` or of
    :func:`~numpyro_ebm.persistent_chains`.

    Attributes:
        step_size: :math:`\epsilon`, in variances of each visible unit given the hidden ones.
        num_steps: Langevin substeps in one step.
        adjust: Whether substeps are accepted or refused.

    Raises:
        TypeError: ``step_size`` is no number; in use, the target is no RBM or has discrete
            visible units.
        ValueError: ``step_size`` or ``num_steps`` is not positive.

    Example:
        >>> import jax, jax.numpy as jnp, numpyro_ebm as ebm
        >>> rbm = ebm.RBM(jnp.ones((2, 3)), ebm.units.Gaussian(jnp.zeros(2)), jnp.zeros(3))
        >>> kernel = ebm.kernels.GibbsLangevinStep(0.5, num_steps=10)
        >>> state = kernel.init(jnp.zeros((100, 2)), rbm)
        >>> state, info = kernel.step(jax.random.key(0), state, rbm)
        >>> state.value.shape
        (100, 2)

    References:
        Liao, Kornblith, Ren, Fleet & Hinton (2022), "Gaussian-Bernoulli RBMs Without Tears".
    """

    step_size: float = 0.5
    num_steps: int = 10
    adjust: bool = True

    reports: ClassVar[tuple[str, ...]] = ("accept_prob",)

    def __post_init__(self) -> None:
        if not isinstance(self.adjust, bool):
            raise TypeError(
                f"GibbsLangevin: expected `adjust` to be True or False; got {self.adjust!r}."
            )
        check_positive("GibbsLangevin", "step_size", self.step_size)
        check_count("GibbsLangevin", "num_steps", self.num_steps, 1)

    @property
    def _langevin(self) -> LangevinStep:
        if self.adjust:
            return MALAStep(
                self.step_size, self.num_steps, adapt_mass_matrix=False, adapt_step_size=False
            )
        return ULAStep(self.step_size, self.num_steps)

    @property
    def is_reversible(self) -> bool:
        """In the visible units it is, if its moves are adjusted."""
        return self.adjust

    def init(self, value: Num[Array, "*batch n"], target: Any) -> GibbsLangevinState:
        """Chains at ``value``.

        Raises:
            TypeError: The target is no RBM, or has discrete visible units.
        """
        _check_target(target)
        value = target.visible(target.chain_at(value))
        batch = value.shape[: value.ndim - len(target.event_shape)]
        return GibbsLangevinState(value, jnp.ones(batch, value.dtype))

    def step(
        self, rng_key: Key[Array, ""], state: GibbsLangevinState, target: Any
    ) -> tuple[GibbsLangevinState, GibbsLangevinInfo]:
        """Draw the hidden units, then take ``num_steps`` Langevin steps of the visible ones."""
        key_hidden, key_move = jax.random.split(rng_key)
        hidden = target.conditional_hidden(state.value).sample(key_hidden)
        scale = jnp.broadcast_to(target.visible_units.feature_scale, state.value.shape)
        given = _GivenHidden(target.conditional_visible(hidden), scale)
        start = self._langevin.init(state.value / scale, given)
        moved, info = self._langevin.step(key_move, start, given)
        state = GibbsLangevinState(scale * moved.value, info.accept_prob)
        return state, GibbsLangevinInfo(info.accept_prob, target.energy(state.value))

    def value(self, state: GibbsLangevinState, target: Any) -> Float[Array, "*batch n"]:
        """Visible units of the chains."""
        return state.value

    def refresh(self, state: GibbsLangevinState, target: Any) -> GibbsLangevinState:
        """Nothing is cached."""
        return state

    def energy(self, state: GibbsLangevinState, target: Any) -> Float[Array, "*batch"]:
        """Energy of a target at the visible units of the chains, in nats."""
        return target.energy(state.value)


def _check_target(target: Any) -> None:
    if not all(hasattr(target, name) for name in ("conditional_hidden", "conditional_visible")):
        raise TypeError(
            "GibbsLangevin: expected an RBM, whose visible units have a conditional given the "
            f"hidden ones; got {type(target).__name__}. Use ebm.MALA."
        )
    check_continuous("GibbsLangevin", target)
