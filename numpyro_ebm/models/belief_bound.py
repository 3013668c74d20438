"""Lower bounds of the log-likelihood of a sigmoid belief network from its recognition network."""

from __future__ import annotations

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Key
from numpyro.distributions import Bernoulli
from scipy.special import logsumexp

from numpyro_ebm.evidence import Evidence
from numpyro_ebm.models.belief_posterior import BeliefPosterior

_NAME = "SigmoidBeliefNetwork"
_ROWS_AT_A_TIME = 500


@partial(jax.jit, static_argnames="num_samples")
def _log_weights(
    rng_key: Key[Array, ""], params: Any, data: Array, num_samples: int
) -> Float[Array, "samples rows"]:
    """Log p(x, h) - log q(h | x) of draws from the recognition network."""
    num = sum(name.startswith("weights_") for name in params)
    weights = [params[f"weights_{k}"] for k in range(1, num + 1)]
    biases = [params[f"bias_{k}"] for k in range(num + 1)]
    posterior = BeliefPosterior(weights, biases, data, validate_args=False)

    def one(key: Key[Array, ""]) -> Float[Array, " rows"]:
        layers, below, log_q = [], data, 0.0
        for k, key_layer in enumerate(jax.random.split(key, num), start=1):
            field = jnp.matmul(
                below.astype(weights[0].dtype),
                params[f"recognition_weights_{k}"],
                precision="highest",
            )
            q: Any = Bernoulli(logits=field + params[f"recognition_bias_{k}"]).to_event(1)
            below = q.sample(key_layer)
            log_q = log_q + q.log_prob(below)
            layers.append(below)
        return -posterior.energy(jnp.concatenate(layers, axis=-1)) - log_q

    return jax.lax.map(one, jax.random.split(rng_key, num_samples))


def bound(
    rng_key: Key[Array, ""], params: Any, data: Array, num_samples: int, importance_weighted: bool
) -> Evidence:
    """Estimate the bound; see ``SigmoidBeliefNetwork.variational_bound``."""
    if not isinstance(num_samples, int) or num_samples < 2:
        raise ValueError(
            f"{_NAME}: expected `num_samples` to be an integer of at least 2; got {num_samples!r}."
        )
    parts = [data[i : i + _ROWS_AT_A_TIME] for i in range(0, len(data), _ROWS_AT_A_TIME)]
    keys = jax.random.split(rng_key, len(parts))
    found = [
        _log_weights(k, params, part, num_samples) for k, part in zip(keys, parts, strict=True)
    ]
    log_weights = np.concatenate([np.asarray(part, np.float64) for part in found], axis=1)
    if importance_weighted:
        bounds = logsumexp(log_weights, axis=0) - np.log(num_samples)
        variance = np.exp(log_weights - bounds).var(0, ddof=1) / num_samples
    else:
        bounds = log_weights.mean(0)
        variance = log_weights.var(0, ddof=1) / num_samples
    return Evidence(
        float(bounds.mean()),
        float(np.sqrt(variance.sum()) / len(bounds)),
        "importance_weighted_bound" if importance_weighted else "variational_bound",
        diagnostics={"bounds": bounds, "num_rows": len(bounds), "num_samples": num_samples},
    )
