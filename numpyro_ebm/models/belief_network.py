"""Sigmoid belief networks with a factorial recognition network."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
from jax.nn import softplus
from jax.scipy.special import logsumexp
from jaxtyping import Array, ArrayLike, Float, Key, Num
from numpyro.util import not_jax_tracer

from numpyro_ebm.evidence import Evidence
from numpyro_ebm.models.belief_bound import bound
from numpyro_ebm.models.belief_posterior import BeliefPosterior, check_sizes
from numpyro_ebm.models.rows import check_columns, drawn, rows_plate

_LARGEST = 20
"""Binary logarithm of the number of pairs of states that are enumerated."""
_NAME = "SigmoidBeliefNetwork"


@jax.tree_util.register_static
@dataclass(frozen=True)
class SigmoidBeliefNetwork:
    r"""Layers of binary units, each drawn given the one above it.

    .. math:: p(h_L) = \prod_j \mathrm{Bernoulli}\big(\sigma(b_{L,j})\big), \qquad
        p(h_{k-1} \mid h_k) = \prod_i \mathrm{Bernoulli}\big(\sigma(W_k h_k + b_{k-1})_i\big)

    with :math:`h_0 = x` visible, and a recognition network that is factorial given the layer
    below, :math:`q(h_k \mid h_{k-1}) = \prod_j \mathrm{Bernoulli}(\sigma(R_k^T h_{k-1} + c_k)_j)`.
    ``model`` and ``recognition`` are a NumPyro model and its guide, for
    ``SVI(sbn.model, sbn.recognition, optim, ebm.WakeSleep())``; ``Predictive(sbn.model,
    params=params, num_samples=1)(rng_key, num_rows=100)`` draws by ancestral sampling.

    Sites: ``hidden_1`` (next to the visible units) to ``hidden_L``, and ``visible``, in the plate
    ``rows``. Parameters: ``weights_k`` (layer k - 1 by layer k), ``bias_0`` to ``bias_L``, and
    for the recognition network ``recognition_weights_k`` and ``recognition_bias_k``.

    Args:
        num_visible: Number of visible units.
        hidden_sizes: Numbers of hidden units, from the layer next to the visible units upwards.
        init_scale: Standard deviation of the weights at the start; biases start at 0.

    Raises:
        ValueError: A size is not a positive integer, there is no hidden layer, or ``init_scale``
            is negative.

    Example:
        >>> import jax, jax.numpy as jnp, numpyro, numpyro_ebm as ebm
        >>> from numpyro.infer import SVI, Predictive
        >>> sbn = ebm.models.SigmoidBeliefNetwork(4, [2])
        >>> data = jnp.array([[1, 1, 0, 0], [0, 0, 1, 1]] * 20)
        >>> svi = SVI(sbn.model, sbn.recognition, numpyro.optim.Adam(0.05), ebm.WakeSleep())
        >>> params = svi.run(jax.random.key(0), 300, data, progress_bar=False).params
        >>> bool(sbn.exact_log_likelihood(params, data).mean() > -2.0)
        True
        >>> predictive = Predictive(sbn.model, params=params, num_samples=1)
        >>> predictive(jax.random.key(1), num_rows=5)["visible"].shape
        (1, 5, 4)

    References:
        Neal (1992), "Connectionist Learning of Belief Networks", Artificial Intelligence 56;
        Hinton, Dayan, Frey & Neal (1995), "The Wake-Sleep Algorithm for Unsupervised Neural
        Networks", Science 268, for the recognition network.
    """

    num_visible: int
    hidden_sizes: Sequence[int]
    init_scale: float = field(default=0.1, kw_only=True)

    def __post_init__(self) -> None:
        sizes = (self.num_visible, *self.hidden_sizes)
        if len(sizes) < 2 or not all(isinstance(size, int) and size > 0 for size in sizes):
            raise ValueError(
                "SigmoidBeliefNetwork: expected positive integers `num_visible` and "
                f"`hidden_sizes`, at least one layer; got {self.num_visible!r} and "
                f"{self.hidden_sizes!r}."
            )
        if not self.init_scale >= 0:
            raise ValueError(
                "SigmoidBeliefNetwork: expected `init_scale` of at least 0; got "
                f"{self.init_scale!r}."
            )
        object.__setattr__(self, "hidden_sizes", tuple(self.hidden_sizes))

    @property
    def sizes(self) -> tuple[int, ...]:
        """Numbers of units of all layers, from the visible one upwards."""
        return (self.num_visible, *self.hidden_sizes)

    @property
    def num_layers(self) -> int:
        """Number of hidden layers."""
        return len(self.sizes) - 1

    def model(
        self,
        data: Num[ArrayLike, "rows num_visible"] | None = None,
        *,
        num_rows: int | None = None,
        subsample_size: int | None = None,
    ) -> Array:
        """Draw, or observe, rows of visible units.

        Args:
            data: Rows of 0 and 1; ``None`` draws them.
            num_rows: Number of rows of the plate, by default that of ``data``. With fewer rows in
                ``data`` they count as a minibatch of so many.
            subsample_size: Rows of ``data`` to draw at each call; the others are left out.

        Returns:
            The visible units.

        Raises:
            ValueError: ``data`` have another number of columns or values other than 0 and 1, or
                neither ``data`` nor ``num_rows`` is given.
        """
        biases = [self._bias("bias", k) for k in range(len(self.sizes))]
        weights = [self._weights("weights", k) for k in range(1, len(self.sizes))]
        with self._plate(data, num_rows, subsample_size) as rows:
            field: Any = biases[-1]
            for k in range(self.num_layers, 0, -1):
                h = numpyro.sample(f"hidden_{k}", _bernoulli(field))
                field = h @ weights[k - 1].T + biases[k - 1]
            visible: Any = numpyro.sample("visible", _bernoulli(field), obs=drawn(data, rows))
        return visible

    def recognition(
        self,
        data: Num[ArrayLike, "rows num_visible"],
        *,
        num_rows: int | None = None,
        subsample_size: int | None = None,
    ) -> None:
        """Draw the hidden units from the bottom up; the guide of ``model``.

        Args:
            data: Rows of 0 and 1.
            num_rows: As in ``model``.
            subsample_size: As in ``model``.

        Raises:
            ValueError: As in ``model``.
        """
        biases = [self._bias("recognition_bias", k) for k in range(1, len(self.sizes))]
        weights = [self._weights("recognition_weights", k) for k in range(1, len(self.sizes))]
        with self._plate(data, num_rows, subsample_size) as rows:
            h: Any = jnp.asarray(drawn(data, rows))
            for k, (weight, bias) in enumerate(zip(weights, biases, strict=True), start=1):
                h = numpyro.sample(f"hidden_{k}", _bernoulli(h @ weight + bias))

    def exact_log_likelihood(
        self, params: Mapping[str, Array], data: Num[ArrayLike, "rows num_visible"]
    ) -> Float[Array, " rows"]:
        r"""Log likelihood of every row in nats, by summing over all states of the hidden layers.

        Args:
            params: Parameters by name, such as those of a finished ``SVI`` run.
            data: Rows of 0 and 1.

        Raises:
            ValueError: Two neighbouring layers (or the first and the rows) have more than
                :math:`2^{20}` pairs of states, or ``data`` do not fit.
        """
        data = self._checked(data)
        rows = int(np.ceil(np.log2(max(len(data), 1))))
        pairs = [rows, *self.sizes[1:-1]]
        if max(size + below for size, below in zip(self.sizes[1:], pairs, strict=True)) > _LARGEST:
            raise ValueError(
                f"SigmoidBeliefNetwork: expected at most 2^{_LARGEST} pairs of states of "
                f"neighbouring layers, or of rows and the first layer; got layers {self.sizes} and "
                f"{len(data)} rows. Estimate the likelihood by importance sampling instead."
            )
        states = [_states(size) for size in self.sizes[1:]]
        bias = params[f"bias_{self.num_layers}"]
        log_prob = _log_prob(states[-1], bias[None])[:, 0]
        for k in range(self.num_layers, 0, -1):
            field = states[k - 1] @ params[f"weights_{k}"].T + params[f"bias_{k - 1}"]
            below = states[k - 2] if k > 1 else data
            log_prob = logsumexp(_log_prob(below, field) + log_prob, axis=1)
        return log_prob

    def posterior(
        self, params: Mapping[str, Array], data: Num[ArrayLike, "*rows num_visible"]
    ) -> BeliefPosterior:
        """Posterior of the hidden units of a row, or of every row: an energy-based distribution.

        Its log Z is the log-likelihood of the row, and its ``gibbs_step`` a sweep over the hidden
        units; :class:`~numpyro_ebm.models.BeliefGibbs` does these in a NumPyro model.

        Args:
            params: Parameters by name, such as those of a finished ``SVI`` run.
            data: Rows of 0 and 1, or one row, as ``evidence.ais`` wants it.

        Raises:
            ValueError: ``params`` or ``data`` do not fit.
        """
        check_sizes(_NAME, params, self.sizes)
        rows = self._checked(jnp.atleast_2d(jnp.asarray(data)))
        weights = [params[f"weights_{k}"] for k in range(1, len(self.sizes))]
        biases = [params[f"bias_{k}"] for k in range(len(self.sizes))]
        return BeliefPosterior(weights, biases, rows if jnp.ndim(data) > 1 else rows[0])

    def variational_bound(
        self,
        rng_key: Key[Array, ""],
        params: Mapping[str, Array],
        data: Num[ArrayLike, "rows num_visible"],
        *,
        num_samples: int = 100,
        importance_weighted: bool = False,
    ) -> Evidence:
        r"""Estimate a lower bound of the mean log-likelihood of rows, by the recognition network.

        .. math:: \log p(x) \ge E_q \log \frac{p(x, h)}{q(h \mid x)}, \qquad
            \log p(x) \ge E \log \frac{1}{S} \sum_{s=1}^S \frac{p(x, h_s)}{q(h_s \mid x)}

        The first is an equality where q is the posterior; the second, importance weighted, is at
        least as tight, and tends to the log-likelihood for many samples.

        Args:
            rng_key: Random key.
            params: Parameters of model and recognition network by name.
            data: Rows of 0 and 1.
            num_samples: S, draws of the hidden units for each row.
            importance_weighted: Whether to estimate the second bound.

        Returns:
            The bound, a mean over rows, in nats. Its standard error is that of the draws;
            ``diagnostics``: ``bounds`` of the rows, ``num_rows`` and ``num_samples``.

        Raises:
            ValueError: ``params`` or ``data`` do not fit, or ``num_samples`` is less than 2.

        References:
            Burda, Grosse & Salakhutdinov (2016), "Importance Weighted Autoencoders", ICLR.
        """
        check_sizes(_NAME, params, self.sizes)
        return bound(rng_key, params, self._checked(data), num_samples, importance_weighted)

    # ----- parts -----------------------------------------------------------------------------

    def _bias(self, name: str, k: int) -> Any:
        return numpyro.param(f"{name}_{k}", jnp.zeros(self.sizes[k]))

    def _weights(self, name: str, k: int) -> Any:
        shape = self.sizes[k - 1 : k + 1]

        def start(rng_key: Array) -> Array:
            return self.init_scale * jax.random.normal(rng_key, shape)

        return numpyro.param(f"{name}_{k}", start)

    def _plate(self, data: Any, num_rows: int | None, subsample_size: int | None) -> numpyro.plate:
        if data is not None:
            self._checked(data)
        return rows_plate(_NAME, data, num_rows, subsample_size)

    def _checked(self, data: Any) -> Any:
        found = check_columns(_NAME, data, self.num_visible)
        if not_jax_tracer(data) and not np.isin(np.asarray(data), (0, 1)).all():
            raise ValueError("SigmoidBeliefNetwork: expected `data` of 0 and 1; got other values.")
        return found


def _bernoulli(logits: Array) -> dist.Distribution:
    return dist.Bernoulli(logits=logits).to_event(1)


def _states(size: int) -> Float[Array, "num_states size"]:
    index = np.arange(2**size)[:, None]
    return jnp.asarray((index >> np.arange(size)) & 1, jnp.result_type(float))


def _log_prob(value: Array, logits: Array) -> Float[Array, "num_values num_logits"]:
    """Log probability of every value under every row of logits."""
    value = value.astype(logits.dtype)
    return jnp.matmul(value, logits.T, precision="highest") - softplus(logits).sum(-1)
