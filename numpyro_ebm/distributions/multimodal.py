"""Restricted Boltzmann machines over several modalities."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import accumulate
from typing import Any, cast

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, ArrayLike, Float, Num
from numpyro.util import not_jax_tracer

from numpyro_ebm.distributions.products import dot
from numpyro_ebm.distributions.rbm import RBM
from numpyro_ebm.units import Concatenate, Unit


class MultimodalRBM(RBM):
    r"""Restricted Boltzmann machine whose visible units are several modalities.

    .. math:: E(v, h) = \sum_k E_k(v_k) + E_h(h) - \sum_k \phi(v_k)^T W_k \phi(h)

    for modalities k, such as an image of Gaussian units beside words of Bernoulli or Poisson
    units. A value holds all of them side by side (:meth:`join`, :meth:`split`). Given some
    modalities the rest is again an RBM, :meth:`condition`, so that one modality is generated from
    another by exact draws where the hidden states can be summed, and else by Gibbs sweeps. It
    trains, anneals and samples as every :class:`~numpyro_ebm.RBM` does.

    Args:
        weights: W of shape ``batch + (num_features, *hidden.feature_shape)``, the rows of the
            modalities in their order; a Categorical unit of q states has q rows.
        visible: Units, one for each modality, or their ``units.Concatenate``.
        hidden: A unit, or an array of Bernoulli logits of shape ``batch + (num_hidden,)``.
        normalizer: What ``log_prob`` knows of log Z, see :class:`~numpyro_ebm.EnergyDistribution`.
        validate_args: Whether parameters and values are checked.

    Raises:
        TypeError: ``visible`` does not hold units.
        ValueError: As in :class:`~numpyro_ebm.RBM`.

    Example:
        >>> import jax, jax.numpy as jnp, numpyro_ebm as ebm
        >>> image, words = ebm.units.Gaussian(jnp.zeros(3)), ebm.units.Poisson(jnp.zeros(2))
        >>> rbm = ebm.MultimodalRBM(0.1 * jnp.ones((5, 4)), [image, words], jnp.zeros(4))
        >>> described = rbm.condition({0: jnp.ones((10, 3))})  # words given ten images
        >>> described.batch_shape, described.sample(jax.random.key(0)).shape
        ((10,), (10, 2))

    References:
        Srivastava & Salakhutdinov (2012), "Multimodal Learning with Deep Boltzmann Machines".
    """

    @classmethod
    def _as_visible(cls, visible: Any) -> Unit:
        """Units side by side, one for each modality."""
        if isinstance(visible, Concatenate):
            return visible
        if isinstance(visible, Sequence) and all(isinstance(unit, Unit) for unit in visible):
            return Concatenate(visible)
        raise TypeError(
            f"{cls.__name__}: expected `visible` to be units, one for each modality, or their "
            f"units.Concatenate; got {type(visible).__name__}."
        )

    @property
    def modalities(self) -> tuple[Unit, ...]:
        """The units of each modality."""
        return cast(Concatenate, self.visible_units).units

    def split(self, value: Num[ArrayLike, "*batch n"]) -> tuple[Num[Array, "*batch k"], ...]:
        """Take a value apart into its modalities, each in the type of its own support.

        Args:
            value: Values of shape ``batch + (num_visible,)``.
        """
        self._check_width(value)
        stops = list(accumulate(unit.shape[0] for unit in self.modalities))[:-1]
        pieces = jnp.split(jnp.asarray(value), stops, axis=-1)
        return tuple(
            piece.astype(jnp.int32) if unit.support.is_discrete else piece
            for unit, piece in zip(self.modalities, pieces, strict=True)
        )

    def join(self, *parts: Num[ArrayLike, "*batch k"]) -> Num[Array, "*batch n"]:
        """Put the modalities of a value side by side; leading dimensions broadcast.

        Args:
            *parts: A value for each modality, of shape ``batch + (its number of units,)``.

        Raises:
            ValueError: The number of parts, or the shape or support of one, does not fit.
        """
        if len(parts) != len(self.modalities):
            raise ValueError(
                f"{type(self).__name__}.join: expected {len(self.modalities)} parts, one for each "
                f"modality; got {len(parts)}."
            )
        arrays = [self._check_part(k, part) for k, part in enumerate(parts)]
        batch = jnp.broadcast_shapes(*(array.shape[:-1] for array in arrays))
        full = [jnp.broadcast_to(array, batch + array.shape[-1:]) for array in arrays]
        return jnp.concatenate(full, axis=-1)

    def condition(
        self, values: Mapping[int, Num[ArrayLike, "*rows k"]], *, normalizer: Any = "guard"
    ) -> RBM:
        r"""Return p(the other modalities | some of them), an RBM with other hidden biases.

        .. math:: E(v_r \mid v_g) = E_r(v_r) - \Lambda_h(\phi(v_r)^T W_r + \phi(v_g)^T W_g)

        up to a constant, exactly. Its log Z is not that of the joint model.

        Args:
            values: What is given: the number of a modality -> values of shape
                ``rows + (its number of units,)``. Leading dimensions become batch dimensions.
            normalizer: Of the result.

        Returns:
            The RBM of one remaining modality, or the :class:`MultimodalRBM` of several, with batch
            shape ``rows`` broadcast with that of this model.

        Raises:
            ValueError: There is no such modality, none or all are given, or a value does not fit.
        """
        name, number = f"{type(self).__name__}.condition", len(self.modalities)
        keys = set(values)
        if not keys < set(range(number)) or not keys:
            raise ValueError(
                f"{name}: expected `values` of some, but not all, of the modalities 0 to "
                f"{number - 1}; got {sorted(keys, key=str)}."
            )
        rest = [k for k in range(number) if k not in keys]
        given = sorted(keys)
        fields = [self._field_of(k, self._check_part(k, values[k])) for k in given]
        field = self._coupled(sum(fields[1:], start=fields[0]))
        matrix = jnp.concatenate([self._rows_of(k) for k in rest], axis=-2)
        matrix = matrix if self._coupling is None else self._coupling * matrix
        units = [self.modalities[k] for k in rest]
        kind, visible = (RBM, units[0]) if len(rest) == 1 else (MultimodalRBM, Concatenate(units))
        event = visible.feature_shape + self.hidden_units.feature_shape
        return kind(
            matrix.reshape(*matrix.shape[:-2], *event),
            visible,
            self.hidden_units.in_field(field),
            normalizer=normalizer,
            validate_args=self._validate_args,
        )

    def _rows_of(self, modality: int) -> Float[Array, "*batch f g"]:
        """Weights of one modality."""
        stops = [0, *accumulate(unit.num_features for unit in self.modalities)]
        return self.weight_matrix[..., stops[modality] : stops[modality + 1], :]

    def _field_of(self, modality: int, part: Num[Array, "*batch k"]) -> Float[Array, "*batch g"]:
        """Input of one modality to the hidden units."""
        return dot(self.modalities[modality].features(part), self._rows_of(modality))

    def _check_part(self, modality: int, part: Num[ArrayLike, "*batch k"]) -> Num[Array, "..."]:
        unit, array = self.modalities[modality], jnp.asarray(part)
        label = f"{type(self).__name__}: expected values of modality {modality}"
        if array.shape[-1:] != unit.shape:
            raise ValueError(f"{label} of shape (..., {unit.shape[0]}); got {array.shape}.")
        if self._validate_args:
            inside = unit.support(array)
            if not_jax_tracer(inside) and not np.all(inside):
                raise ValueError(f"{label} in the support {unit.support}; got values outside it.")
        return array

    def _check_width(self, value: Any) -> None:
        if jnp.shape(value)[-1:] != self.event_shape:
            raise ValueError(
                f"{type(self).__name__}.split: expected `value` of shape (..., "
                f"{self.event_shape[0]}); got {jnp.shape(value)}."
            )
