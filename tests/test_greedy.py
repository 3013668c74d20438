"""Greedy layer-wise training: the bound it raises, its settings and refusals."""

import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import optax
import pytest
from deep_networks import enumerated, log_z, machine
from helpers import layer
from numpyro.infer import SVI

from numpyro_ebm import (
    DBN,
    RBM,
    ContrastiveDivergence,
    MaximumLikelihood,
    fit_greedy,
)
from numpyro_ebm.units import Gaussian, Spin

KEY = jax.random.key(0)
ROWS = np.array([[1, 1, 0, 0], [1, 1, 1, 0], [0, 0, 1, 1], [0, 1, 1, 1], [1, 1, 0, 0]])


def bound(layers, data):
    """Mean variational bound of the rows, every state summed."""
    dbn = DBN(layers)
    return enumerated(dbn, data)[1].mean() - log_z(dbn)


@pytest.mark.slow
def test_exact_ascent_never_lowers_the_bound():
    """Two layers more, each from the machine below upside down, by the enumerated gradient."""
    stack = [machine(("Bernoulli", 4), ("Bernoulli", 3), scale=1.5)]
    bounds = [bound(stack, ROWS)]
    for _ in range(2):
        below = stack[-1]
        top = RBM(below.weights.T, below.hidden_units, below.visible_units)
        states = layer(top.visible_units).values
        weights = posterior(DBN([*stack, top]), states)

        svi = SVI(weighted, lambda *args: None, optax.sgd(0.5), MaximumLikelihood())
        state = svi.init(KEY, states, weights, top)
        update = jax.jit(svi.update)
        history = [bound([*stack, top], ROWS)]
        np.testing.assert_allclose(history[0], bounds[-1], rtol=1e-5)
        for _ in range(20):
            state, _ = update(state, states, weights, top)
            history.append(bound([*stack, svi.get_params(state)["top"]], ROWS))
        assert np.all(np.diff(history) > -1e-6)
        assert history[-1] > history[0]
        stack = [*stack, svi.get_params(state)["top"]]
        bounds.append(history[-1])
    exact = -enumerated(DBN(stack), ROWS)[0].mean() - log_z(DBN(stack))
    assert exact > bounds[-1] > bounds[0]


def weighted(states, weights, start):
    """A machine that observes all states, each as often as its weight says."""
    rbm = numpyro.param("top", lambda key: start)
    with numpyro.plate("states", len(states)), numpyro.handlers.scale(scale=weights):
        numpyro.sample("h", rbm, obs=states)


def posterior(dbn, states):
    """Probabilities of the topmost states under the recognition distribution, mean over rows."""
    found = np.ones((len(ROWS), 1))
    below = [ROWS]
    for rbm in dbn.layers[:-1]:
        above = layer(rbm.hidden_units).values
        log_q = rbm.conditional_hidden(below[-1][:, None]).log_prob(above)
        found = (found @ np.exp(log_q)) if len(below) > 1 else np.exp(log_q)
        below.append(above)
    assert np.array_equal(below[-1], states)
    return found.mean(0)


@pytest.mark.slow
def test_it_raises_the_bound():
    data = np.tile(ROWS, (40, 1))
    settings = {"num_epochs": 150, "batch_size": 200, "progress_bar": False}
    options = {"loss": MaximumLikelihood(), **settings}
    first = fit_greedy(KEY, data, [3], optim=optax.sgd(5e-3), **options)
    both = fit_greedy(KEY, data, [4], layers=first.layers, optim=optax.sgd(1e-3), **options)
    assert [rbm.weights.shape for rbm in both.layers] == [(4, 3), (3, 4)]
    assert len(both.fits) == 1
    assert np.array_equal(both.layers[0].weights, first.layers[0].weights)
    assert bound(both.layers, ROWS) > bound(first.layers, ROWS)
    rates = -enumerated(DBN(first.layers), ROWS)[0].mean() - log_z(first.dbn)
    assert rates > -3.0  # log 16 is 2.77, independent units 2.6


@pytest.mark.slow
def test_layers_of_other_sizes_start_nearly_where_the_network_was():
    """With more hidden units than visible ones, or without a pixel that is never on."""
    rows = np.column_stack([ROWS, np.zeros(5, int)])
    lower = machine(("Bernoulli", 5), ("Bernoulli", 3), scale=1.5)
    logits = lower.visible_units.logits.at[4].set(-12.0)
    lower = RBM(lower.weights, logits, lower.hidden_units)
    settings = {"optim": optax.sgd(0.0), "num_epochs": 1, "batch_size": 5, "progress_bar": False}
    for size, tolerance in {4: 1e-3, 5: 1e-5, 7: 0.02}.items():  # small weights of further units
        found = fit_greedy(KEY, rows, [size], layers=[lower], **settings)
        assert found.layers[1].weights.shape == (3, size)
        np.testing.assert_allclose(bound(found.layers, rows), bound([lower], rows), atol=tolerance)
    far = fit_greedy(KEY, rows, [3], layers=[lower], **settings)  # at random
    assert np.abs(far.layers[1].weights).max() < 0.1


@pytest.mark.slow
def test_other_units_losses_and_checkpoints(tmp_path):
    data = np.random.default_rng(0).normal(size=(60, 3)).astype(np.float32)
    settings = {"num_epochs": 2, "batch_size": 20, "num_chains": 10, "progress_bar": False}
    options = {"optim": optax.sgd(1e-4), **settings}
    visible = Gaussian(jnp.zeros(3), 0.5)
    result = fit_greedy(
        KEY,
        data,
        [2, Spin(jnp.zeros(3))],
        visible=visible,
        checkpoint=tmp_path / "run.safetensors",
        **options,
    )
    kinds = [[type(u).__name__ for u in (m.visible_units, m.hidden_units)] for m in result.layers]
    assert kinds == [["Gaussian", "Bernoulli"], ["Bernoulli", "Spin"]]
    assert np.array_equal(result.layers[0].visible_units.scale, visible.scale)
    assert not np.array_equal(result.layers[0].visible_units.loc, visible.loc)
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        "run.layer_1.safetensors",
        "run.layer_2.safetensors",
    ]
    loss = ContrastiveDivergence()
    short = fit_greedy(KEY, ROWS, [2], loss=loss, **{**options, "batch_size": 5})
    assert short.fits[0].state.mutable_state is None


def test_hidden_layers_that_are_refused():
    settings = {"optim": optax.sgd(0.1), "num_epochs": 1, "batch_size": 5}
    for hidden in ([0], ["3"], [True]):
        with pytest.raises(TypeError, match="`hidden` to be positive numbers of units or units"):
            fit_greedy(KEY, ROWS, hidden, **settings)
