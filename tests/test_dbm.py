"""Deep Boltzmann machines against sums over all their layers."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from dbm_models import CASES, BruteDBM, brute, model
from helpers import assert_close, assert_moments, features, moments
from scipy.special import logsumexp

from numpyro_ebm import DBM, RBM, NormalizerError, evidence, units
from numpyro_ebm.distributions import dbm_sum

every = pytest.mark.parametrize("name", CASES)


def names(*fast, slow=()):
    """Cases by name, some only among the slow tests."""
    late = [pytest.param(name, marks=pytest.mark.slow) for name in slow]
    return pytest.mark.parametrize("name", [*fast, *late])


def rows_of(name, size=40):
    """Some values of all layers."""
    states = brute(name).draw(np.random.default_rng(1), size)
    return [
        state if unit.num_states is None else state.astype(np.int32)
        for state, unit in zip(states, model(name).units, strict=True)
    ]


# ----- densities -------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@every
def test_energies_and_log_z(name, dtype):
    if dtype == "float64" and name not in ("three", "kinds", "multimodal"):
        pytest.skip("three are enough in double precision")
    with jax.enable_x64(dtype == "float64"):
        dbm = CASES[name].build(dtype)
        answer = BruteDBM(dbm)
        states = answer.draw(np.random.default_rng(0), 30)
        value = jnp.asarray(states[0], dtype if dbm.units[0].num_states is None else "int32")
        rows = (states[0][:, None] == answer.values).all(-1).argmax(1)
        assert_close(jax.jit(dbm.energy)(value), answer.energies[rows], dtype)
        joint = dbm.joint_energy(value, states[1:])
        assert_close(joint, answer.joint_energy(states), dtype)
        assert_close(dbm.exact_log_z(), answer.log_z, dtype)
    assert evidence.exact(dbm).log_evidence == pytest.approx(answer.log_z, rel=1e-6)


@every
def test_probabilities_sum_to_one(name):
    dbm, answer = CASES[name].build(normalizer="exact"), brute(name)
    values = answer.values
    if dbm.units[0].num_states is not None:
        values = values.astype(np.int32)
    log_probs = jax.jit(dbm.log_prob)(values) + answer.layers[0].log_weight
    np.testing.assert_allclose(log_probs, answer.log_probs, rtol=1e-4, atol=1e-4)
    assert logsumexp(log_probs) == pytest.approx(0, abs=1e-4)


@names("two wide", slow=("two",))
def test_sums_in_chunks(name, monkeypatch):
    """Even hidden layers are summed in the first model, odd ones in the second."""
    values, dbm = jnp.array([[1, 0, 1], [0, 1, 1]]), model(name)

    def value_and_gradient(dbm):
        return jax.value_and_grad(lambda dbm: dbm.energy(values).sum())(dbm)

    expected = value_and_gradient(dbm)
    monkeypatch.setattr(dbm_sum, "_CHUNK_FLOATS", 16)
    for a, b in zip(*map(jax.tree.leaves, (value_and_gradient(dbm), expected)), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5)


@every
def test_conditionals(name):
    """p(layer | neighbours) is the joint density over all states of the layer, normalized."""
    dbm, answer, states = model(name), brute(name), rows_of(name, 6)
    for k, own in enumerate(answer.layers):
        others = [np.repeat(s[None], len(own.values), 0) for s in states]
        others[k] = np.repeat(own.values[:, None], 6, 1)
        log_joint = -answer.joint_energy(others) + own.log_weight[:, None]
        expected = log_joint - logsumexp(log_joint, axis=0)
        given = dbm.conditional_layer(k, [None if i == k else s for i, s in enumerate(states)])
        values = own.values if dbm.units[k].num_states is None else own.values.astype(np.int32)
        actual = given.log_prob(values[:, None]) + own.log_weight[:, None]
        np.testing.assert_allclose(actual, expected, rtol=1e-3, atol=2e-4)


def test_one_hidden_layer_is_an_rbm():
    dbm = model("one")
    rbm = RBM(dbm.weights[0], *dbm.units)
    values = np.array(list(np.ndindex(2, 2, 2)))
    np.testing.assert_allclose(dbm.energy(values), rbm.energy(values), rtol=1e-5)
    np.testing.assert_allclose(
        dbm.variational_energy(values, dbm.mean_field(values)), rbm.energy(values), rtol=1e-5
    )


@every
def test_the_rbm_of_even_and_odd_layers(name):
    dbm, answer, states = model(name), brute(name), rows_of(name)
    even, odd = (np.concatenate(side, -1) for side in (states[::2], states[1::2]))
    expected = answer.joint_energy(states)
    np.testing.assert_allclose(dbm.bipartite.joint_energy(even, odd), expected, atol=1e-4)


# ----- draws -----------------------------------------------------------------------------------


@names("three", "multimodal", slow=("kinds", "Gaussian hidden"))
def test_exact_draws(name):
    dbm, answer = model(name), brute(name)
    draws = dbm.sample(jax.random.key(1), (20_000,))
    visible = answer.layers[0]
    sampled = moments(features(dbm.units[0], draws), jax.jit(dbm.energy)(draws))
    assert_moments(sampled, answer.probs @ moments(visible.features, answer.energies))


def advanced(dbm, states, num_steps, **held):
    """Chains that start at given states of all layers, some sweeps later."""
    start = [jnp.asarray(s).astype(u.dtype) for s, u in zip(states, dbm.units, strict=True)]
    chain = dbm.chain_at(start[0])._replace(hidden=tuple(start[1:]))

    @jax.jit
    def run(dbm, chain):
        def sweep(i, chain):
            return dbm.gibbs_step(jax.random.fold_in(jax.random.key(0), i), chain, **held)

        return jax.lax.fori_loop(0, num_steps, sweep, dbm.refresh(chain))

    chain = run(dbm, chain)
    return [np.asarray(x, np.float64) for x in (chain.visible, *chain.hidden)]


def assert_same_means(dbm, before, after):
    """Means of features, and of products across neighbouring layers, within four errors."""
    phi = [[features(u, x) for u, x in zip(dbm.units, s, strict=True)] for s in (before, after)]
    for k in range(len(dbm.units)):
        changes = [phi[1][k] - phi[0][k]]
        if k:
            pairs = [np.einsum("ci,cj->cij", p[k - 1], p[k]).reshape(len(p[k]), -1) for p in phi]
            changes.append(pairs[1] - pairs[0])
        for change in changes:
            error = change.std(0) / len(change) ** 0.5
            assert np.all(np.abs(change.mean(0)) < 4 * error + 1e-12)


@pytest.mark.parametrize("num_steps", [1, 16])
@names("three", "multimodal", slow=("two", "kinds"))
def test_no_drift_of_any_layer(name, num_steps):
    before = brute(name).draw(np.random.default_rng(2), 20_000)
    after = advanced(model(name), before, num_steps)
    assert_same_means(model(name), before, after)
    assert np.mean(before[-1] != after[-1]) > 0.05


def test_a_sweep_draws_odd_layers_first():
    """From one state: odd layers given it, then even layers given those."""
    dbm, answer = model("three"), brute("three")
    start = [s[0] for s in rows_of("three", 1)]
    after = advanced(dbm, [np.tile(s, (20_000, 1)) for s in start], 1)
    odd = [dbm.conditional_layer(k, start).mean for k in (1, 3)]
    for number, mean in zip((1, 3), odd, strict=True):
        assert_moments(after[number], np.asarray(mean))
    given = [dbm.conditional_layer(k, after).mean for k in (0, 2)]
    for number, mean in zip((0, 2), given, strict=True):
        assert_moments(after[number] - np.asarray(mean), 0.0)
    assert answer.joint.ndim == 4


@pytest.mark.parametrize("name", ["three", "multimodal"])
def test_clamped_units(name):
    """Chains with one visible unit held stay at the conditional, exactly held."""
    dbm, answer = model(name), brute(name)
    held = answer.values[:, -1] == 1
    before = answer.draw(np.random.default_rng(3), 20_000, held)
    mask = np.arange(answer.values.shape[1]) == answer.values.shape[1] - 1
    after = advanced(dbm, before, 5, mask=mask, values=np.ones(len(mask)))
    assert np.all(after[0][:, -1] == 1)
    assert_same_means(dbm, before, after)


def test_chain_energy_sums_the_odd_layers():
    dbm, answer, states = model("three"), brute("three"), rows_of("three")
    energies = []
    for odd in np.ndindex(2, 2, 2, 2):
        layers = [states[0], np.tile(odd[:2], (40, 1)), states[2], np.tile(odd[2:], (40, 1))]
        energies.append(answer.joint_energy(layers))
    chain = dbm.chain_at(jnp.asarray(states[0]))
    chain = chain._replace(hidden=tuple(jnp.asarray(s, jnp.uint8) for s in states[1:]))
    expected = -logsumexp(-np.array(energies), axis=0)
    for start in (chain, dbm.refresh(chain)):
        np.testing.assert_allclose(dbm.chain_energy(start), expected, rtol=1e-5, atol=1e-5)


# ----- mean field ------------------------------------------------------------------------------


@every
def test_bound(name):
    """Never above log p, at a fixed point of the conditionals, and the mean of the enumeration."""
    dbm, answer = model(name), brute(name)
    values = answer.values if dbm.units[0].num_states is None else answer.values.astype(np.int32)
    found = dbm.mean_field(values)
    assert found.converged.all()
    assert found.num_iterations < 100
    bound = -dbm.variational_energy(values, found)
    log_probs = answer.log_probs - answer.layers[0].log_weight
    assert np.all(bound - answer.log_z < log_probs + 1e-4)
    visible = features(dbm.units[0], values)
    means = [visible, *found.means]
    for k in range(1, len(means)):
        field = means[k - 1] @ answer.weights[k - 1]
        if k + 1 < len(means):
            field = field + means[k + 1] @ answer.weights[k].T
        np.testing.assert_allclose(dbm.units[k].mean(field), means[k], atol=2e-4)


def test_variational_energy_is_that_of_independent_units():
    """Any means at all, summed over all states."""
    dbm, answer, rng = model("three"), brute("three"), np.random.default_rng(0)
    values = answer.values.astype(np.int32)
    means = [rng.uniform(0.1, 0.9, (8, unit.shape[0])) for unit in dbm.units[1:]]
    expected = np.zeros(8)
    for states in np.ndindex(*[len(own.values) for own in answer.layers[1:]]):
        hidden = [own.values[s] for own, s in zip(answer.layers[1:], states, strict=True)]
        probs = [np.where(h, m, 1 - m).prod(-1) for h, m in zip(hidden, means, strict=True)]
        weight = np.prod(probs, 0)
        tiled = [values, *(np.tile(h, (8, 1)) for h in hidden)]
        expected += weight * (answer.joint_energy(tiled) + np.log(weight))
    np.testing.assert_allclose(dbm.variational_energy(values, means), expected, rtol=1e-5)


@names("three", slow=("two", "kinds"))
def test_the_bound_is_the_likelihood_where_the_posterior_factorizes(name):
    """Without the weights between hidden layers it does, whatever the visible units say."""
    dbm = model(name)
    cut = DBM([dbm.weights[0], *(0 * w for w in dbm.weights[1:])], dbm.units)
    values = brute(name).values.astype(np.int32)
    bound = cut.variational_energy(values, cut.mean_field(values))
    np.testing.assert_allclose(bound, cut.energy(values), rtol=1e-5, atol=1e-5)


def test_every_turn_lowers_the_variational_energy():
    dbm = CASES["three"]._replace(scale=3.0).build()
    values = np.array(list(np.ndindex(2, 2, 2)))
    energies = [
        dbm.variational_energy(values, dbm.mean_field(values, n, tolerance=0)) for n in range(1, 9)
    ]
    assert np.all(np.diff(np.array(energies), axis=0) < 1e-4)


def test_what_has_not_converged_is_reported():
    dbm = CASES["three"]._replace(scale=3.0).build()
    values = np.array(list(np.ndindex(2, 2, 2)))
    found = dbm.mean_field(values, 2)
    assert found.num_iterations == 2
    assert not found.converged.all()
    assert dbm.mean_field(values, 1000).converged.all()


def test_deep_models_have_a_bound_alone():
    rng = np.random.default_rng(0)
    sizes = (6, 30, 40)
    dbm = DBM(
        [
            rng.normal(0, 0.1, pair).astype(np.float32)
            for pair in zip(sizes, sizes[1:], strict=False)
        ],
        [np.zeros(n, np.float32) for n in sizes],
    )
    value = np.ones(6, np.int32)
    with pytest.raises(ValueError, match=r"at most 1048576 .*about 10.12 and .*mean_field"):
        dbm.energy(value)
    assert np.isfinite(dbm.variational_energy(value, dbm.mean_field(value)))
    with pytest.raises(NormalizerError, match="DBM: expected at most 2.20 states of all even"):
        evidence.exact(dbm)


# ----- annealing -------------------------------------------------------------------------------


@names("three", "multimodal", slow=("one", "kinds"))
def test_path(name):
    dbm, answer = model(name), brute(name)
    data = rows_of(name, 50)[0]
    path = dbm.default_path(jax.random.key(0), data)
    chain = path.sample(jax.random.key(1), 9)
    first, second = path.at(0.25), path.at(0.5)
    change = first.chain_energy(chain) - second.chain_energy(chain)
    increment = path.log_weight_increment(chain, 0.25, 0.5)
    np.testing.assert_allclose(increment, change, rtol=1e-4, atol=1e-4)
    assert evidence.exact(path.at(1.0)).log_evidence == pytest.approx(answer.log_z, rel=1e-5)
    assert evidence.exact(path.at(0.0)).log_evidence == pytest.approx(float(path.log_z0), rel=1e-5)


@names("three", slow=("multimodal",))
def test_annealed_importance_sampling(name):
    found = evidence.ais(jax.random.key(0), model(name), num_temperatures=100, num_particles=1000)
    assert abs(found.log_evidence - brute(name).log_z) < 4 * found.std_error


@pytest.mark.slow
@pytest.mark.parametrize("name", ["two", "three", "kinds", "multimodal", "Gaussian hidden"])
def test_annealing_is_calibrated(name):
    dbm = CASES[name]._replace(scale=1.5 if name != "Gaussian hidden" else 0.5).build()
    truth = BruteDBM(dbm).log_z
    scores = []
    for seed in range(40):
        found = evidence.ais(jax.random.key(seed), dbm, num_temperatures=30, num_particles=300)
        scores.append((found.log_evidence - truth) / found.std_error)
    assert 0.7 < np.sqrt(np.mean(np.square(scores))) < 1.5
    assert abs(np.mean(scores)) * 40**0.5 < 4


def test_a_start_at_visible_values_is_refused_along_a_path():
    path = model("two").default_path(jax.random.key(0))
    with pytest.raises(ValueError, match="hidden layers along a path"):
        path.at(0.5).chain_at(jnp.zeros((2, 3), jnp.uint8))
    with pytest.raises(ValueError, match=r"DBM: expected `base` data of shape \(n, 3\)"):
        model("two").default_path(jax.random.key(0), np.zeros((0, 3)))


def test_variational_bound():
    dbm, answer = model("three"), brute("three")
    values = answer.values.astype(np.int32)
    found = evidence.variational_bound(jax.random.key(0), dbm, values, log_z=evidence.exact(dbm))
    assert found.ok
    assert found.log_evidence < answer.log_probs.mean()
    bounds = -dbm.variational_energy(values, dbm.mean_field(values)) - answer.log_z
    np.testing.assert_allclose(found.diagnostics["bounds"], bounds, atol=1e-5)
    assert found.diagnostics["num_not_converged"] == 0
    strong = CASES["three"]._replace(scale=3.0).build()
    with pytest.warns(evidence.EvidenceWarning, match="have not converged"):
        found = evidence.variational_bound(
            jax.random.key(0), strong, values, log_z=evidence.exact(strong), num_iterations=2
        )
    assert found.diagnostics["num_not_converged"] > 0
    assert not found.ok


# ----- refused ---------------------------------------------------------------------------------

W = [np.zeros((4, 3)), np.zeros((3, 2))]
B = [np.zeros(4), np.zeros(3), np.zeros(2)]


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda: DBM(np.zeros((4, 3)), B), TypeError, "`weights` to be a list"),
        (lambda: DBM(W, B[:2]), ValueError, "one more layer in `biases`.*got 2 and 2"),
        (lambda: DBM([], [B[0]]), ValueError, "at least one matrix"),
        (lambda: DBM(["x", W[1]], B), TypeError, "array for `weights` of layer 1; got str"),
        (lambda: DBM([W[0], W[1].T], B), ValueError, r"layer 2 of shape \(..., 3, 2\).*\(2, 3\)"),
        (lambda: DBM(W, [B[0], "x", B[2]]), TypeError, "`biases` of layer 1"),
        (lambda: DBM([W[0] * np.nan, W[1]], B, validate_args=True), ValueError, "12 NaN"),
        (
            lambda: DBM(
                [3 * np.ones((1, 1)), np.ones((1, 1))],
                [units.Gaussian([0.0]), units.Gaussian([0.0]), np.zeros(1)],
                validate_args=True,
            ),
            ValueError,
            "DBM, as an RBM of its even and odd layers.*cannot be normalized",
        ),
        (lambda: DBM(W, B).energy(np.zeros(3)), ValueError, r"`value` of shape \(..., 4\)"),
        (
            lambda: DBM(W, B).joint_energy(np.zeros(4, int), [np.zeros(3, int)]),
            ValueError,
            "values of 2 hidden layers; got 1",
        ),
        (
            lambda: DBM(W, B).joint_energy(np.zeros(4, int), [np.zeros(3, int), np.zeros(3, int)]),
            ValueError,
            r"layer 2 of shape \(..., 2\)",
        ),
        (
            lambda: DBM(W, B).variational_energy(np.zeros(4, int), [np.zeros(3)]),
            ValueError,
            "`means` of 2 hidden layers; got 1",
        ),
        (
            lambda: DBM(W, [*B[:2], units.ReLU([0.0, 0.0])]).mean_field(np.zeros(4, int)),
            ValueError,
            "`hidden` units; got ReLU. Use chains",
        ),
        (lambda: DBM(W, B).conditional_layer(3, [None] * 3), ValueError, "from 0 to 2"),
    ],
)
def test_refused(call, error, message):
    with pytest.raises(error, match=message):
        call()
