"""What NumPyro, JAX and ArviZ ask of deep Boltzmann machines, and how they are put together."""

import pickle

import arviz as az
import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
import optax
import pytest
from chains import assert_chain_means, run
from dbm_models import CASES, BruteDBM, brute, model
from numpyro import handlers
from numpyro.infer import SVI, Predictive

from numpyro_ebm import (
    DBM,
    RBM,
    BlockGibbs,
    ContrastiveDivergence,
    NormalizerError,
    PersistentContrastiveDivergence,
    fit,
    persistent_chains,
    units,
)
from numpyro_ebm.base import unwrap

VALUES = np.array([[1, 0, 1], [0, 1, 1], [0, 0, 0]])


# ----- transformations and plates --------------------------------------------------------------


@pytest.mark.slow
def test_pytree_pickle_and_transformations():
    dbm = CASES["three"].build(normalizer="exact")
    expected = dbm.log_prob(VALUES)
    leaves, structure = jax.tree.flatten(dbm)
    for copy in (jax.tree.unflatten(structure, leaves), pickle.loads(pickle.dumps(dbm))):
        found = jax.jit(lambda d, v: d.log_prob(v))(copy, VALUES)
        np.testing.assert_allclose(found, expected, rtol=1e-5)
    mapped = jax.vmap(dbm.log_prob)(VALUES)
    np.testing.assert_allclose(mapped, expected, rtol=1e-5)
    chain = dbm.gibbs_step(jax.random.key(0), dbm.init_chain(jax.random.key(1), (5,)))
    assert [x.dtype.name for x in (chain.visible, *chain.hidden)] == ["uint8"] * 4
    assert [x.shape for x in chain.hidden] == [(5, 2), (5, 3), (5, 2)]


@pytest.mark.slow
def test_batches():
    """Each member of a batch is the machine of its own parameters."""
    dbm = CASES["three"]._replace(batch=(2,)).build(normalizer="exact")
    members = [
        DBM([w[i] for w in dbm.weights], jax.tree.map(lambda x, i=i: x[i], dbm.units))
        for i in range(2)
    ]
    expected = np.stack([BruteDBM(m).log_probs for m in members], 1)
    values = brute("three").values[:, None].astype(np.int32)
    np.testing.assert_allclose(dbm.log_prob(values), expected, rtol=1e-4)
    bounds = dbm.variational_energy(values, dbm.mean_field(values))
    for i, member in enumerate(members):
        own = member.variational_energy(values[:, 0], member.mean_field(values[:, 0]))
        np.testing.assert_allclose(bounds[:, i], own, rtol=1e-4)
    assert dbm.sample(jax.random.key(0), (3,)).shape == (3, 2, 3)
    assert dbm.gibbs_step(jax.random.key(0), dbm.init_chain(jax.random.key(0))).visible.shape == (
        2,
        3,
    )


def test_in_a_model():
    def program(data=None):
        with numpyro.plate("rows", 3):
            return numpyro.sample("v", CASES["two"].build(normalizer="exact"), obs=data)

    draws = Predictive(program, num_samples=4)(jax.random.key(0))["v"]
    assert draws.shape == (4, 3, 3)
    site = handlers.trace(program).get_trace(VALUES)["v"]
    assert isinstance(unwrap(site["fn"]), DBM)
    np.testing.assert_allclose(
        site["fn"].log_prob(VALUES), brute("two").log_probs[VALUES @ [4, 2, 1]], rtol=1e-4
    )


def test_gradient_is_guarded():
    dbm = model("two")
    with pytest.raises(NormalizerError, match="DBM.*weights"):
        jax.grad(lambda d: d.log_prob(VALUES).sum())(dbm)


# ----- sampling --------------------------------------------------------------------------------


@pytest.mark.slow
def test_block_gibbs_with_a_likelihood():
    """The posterior of visible units seen through noise is that of the enumeration."""
    noisy = np.array([0.8, 0.1, 0.4])

    def program(noisy):
        v = numpyro.sample("v", model("three"))
        numpyro.sample("noisy", dist.Normal(v, 0.7).to_event(1), obs=noisy)

    mcmc = run(BlockGibbs(program), noisy, num_chains=50, num_samples=400, extra_fields=("energy",))
    answer = brute("three")
    log_probs = answer.log_probs - ((noisy - answer.values) ** 2).sum(1) / (2 * 0.7**2)
    probs = np.exp(log_probs - log_probs.max())
    samples = np.asarray(mcmc.get_samples(group_by_chain=True)["v"])
    assert samples.dtype == np.uint8
    assert_chain_means(samples, probs / probs.sum() @ answer.values)
    assert az.from_numpyro(mcmc).posterior["v"].shape == (50, 400, 3)


def test_low_precision_sweeps():
    dbm = model("two")
    chain = dbm.low_precision_refresh(dbm.init_chain(jax.random.key(0), (20_000,)))

    def sweep(i, chain):
        return dbm.low_precision_step(jax.random.fold_in(jax.random.key(1), i), chain)

    draws = np.asarray(jax.lax.fori_loop(0, 40, sweep, chain).visible)
    error = draws.mean(0) - brute("two").probs @ brute("two").values
    assert np.all(np.abs(error) < 0.02)  # weights rounded to 8 bits


def test_one_modality_from_the_other():
    """Chains clamped at a value of the image side draw the word side from its conditional."""
    rng = np.random.default_rng(0)

    def pathway(rows, columns):
        return rng.normal(0, 1.0, (rows, columns))

    below = units.Concatenate([units.Gaussian(np.zeros(2), 1.0), units.Bernoulli(np.zeros(2))])
    weights = np.block([[pathway(2, 2), np.zeros((2, 2))], [np.zeros((2, 2)), pathway(2, 2)]])
    dbm = DBM([0.5 * weights, pathway(4, 2)], [below, np.zeros(4), np.zeros(2)])
    image = np.array([1.0, -0.5])
    mask, held = np.array([True, True, False, False]), np.array([*image, 0, 0])
    chain = dbm.init_chain(jax.random.key(0), (20_000,))

    @jax.jit
    def conditioned(chain):
        def sweep(i, chain):
            key = jax.random.fold_in(jax.random.key(1), i)
            return dbm.gibbs_step(key, chain, mask=mask, values=held)

        return jax.lax.fori_loop(0, 60, sweep, chain)

    words = np.asarray(conditioned(chain).visible)[:, 2:]
    states = np.array(list(np.ndindex(2, 2)))
    values = np.column_stack([np.tile(image, (4, 1)), states])
    probs = np.exp(-np.asarray(dbm.energy(values), np.float64))
    expected = probs / probs.sum() @ states
    error = words.std(0) / len(words) ** 0.5
    assert np.all(np.abs(words.mean(0) - expected) < 4 * error)


# ----- layers put together ---------------------------------------------------------------------


def test_doubled_machines():
    """Conditionals of the three kinds, and data of two copies."""
    rng = np.random.default_rng(0)
    weights, a, b = rng.normal(size=(3, 2)), rng.normal(size=3), rng.normal(size=2)
    value, hidden = np.array([1, 0, 1]), np.array([0, 1])
    up, down = value @ weights, weights @ hidden
    make = DBM.pretraining_rbm
    for kind, factors in (("bottom", (2, 1)), ("top", (1, 2)), ("inner", (2, 2)), ("only", (1, 1))):
        rbm = make(
            weights,
            a,
            b,
            is_bottom=kind in ("bottom", "only"),
            is_top=kind in ("top", "only"),
        )
        lower = np.tile(value, 1 + (kind == "bottom"))
        upper = np.tile(hidden, 1 + (kind == "top"))
        above = rbm.conditional_hidden(lower).base_dist.logits
        below = rbm.conditional_visible(upper).base_dist.logits
        np.testing.assert_allclose(
            above, np.tile(b + factors[0] * up, 1 + (kind == "top")), rtol=1e-5
        )
        np.testing.assert_allclose(
            below, np.tile(a + factors[1] * down, 1 + (kind == "bottom")), rtol=1e-5
        )


@pytest.mark.parametrize("name", ["one", "three", "multimodal"])
def test_half_the_energies_of_the_pretrained_machines(name):
    """Both copies of a layer in the same state."""
    parts = CASES[name].build(), CASES[name]._replace(seed=50).build()
    last = len(parts[0].weights) - 1
    rbms = [
        DBM.pretraining_rbm(
            parts[0].weights[k],
            parts[0].units[k],
            parts[1].units[k + 1],
            is_bottom=k == 0,
            is_top=k == last,
        )
        for k in range(last + 1)
    ]
    dbm = DBM.from_pretrained(rbms)
    answer = BruteDBM(dbm)
    states = answer.draw(np.random.default_rng(0), 20)
    states = [
        s if u.num_states is None else s.astype(np.int32)
        for s, u in zip(states, dbm.units, strict=True)
    ]
    total = 0.0
    for k, rbm in enumerate(rbms):
        copies = [1, 1] if last == 0 else [1 + (k == 0), 1 + (k == last)]
        below, above = (np.tile(s, c) for s, c in zip(states[k : k + 2], copies, strict=True))
        total = total + np.asarray(rbm.joint_energy(below, above))
    expected = total if last == 0 else total / 2
    difference = np.asarray(dbm.joint_energy(states[0], states[1:])) - expected
    np.testing.assert_allclose(difference, difference[0], atol=1e-4)  # Gaussian: a constant


def test_centered_parameters():
    dbm = model("kinds")
    offsets = [np.linspace(0, 1, u.num_features).reshape(u.feature_shape) for u in dbm.units]
    centered = DBM.from_centered(dbm.weights, dbm.units, offsets)
    answer, rng = brute("kinds"), np.random.default_rng(0)
    states = [s.astype(np.int32) for s in answer.draw(rng, 20)]
    phi = [
        np.asarray(u.features(s)) - o.ravel()
        for u, s, o in zip(dbm.units, states, offsets, strict=True)
    ]
    own = sum(np.asarray(u.energy(s)) for u, s in zip(dbm.units, states, strict=True))
    coupled = sum(
        (a @ w * b).sum(-1) for a, w, b in zip(phi[:-1], answer.weights, phi[1:], strict=True)
    )
    difference = np.asarray(centered.joint_energy(states[0], states[1:])) - (own - coupled)
    np.testing.assert_allclose(difference, difference[0], atol=1e-4)
    back = DBM.from_centered(centered.weights, centered.units, [-o for o in offsets])
    for mine, theirs in zip(back.units, dbm.units, strict=True):
        np.testing.assert_allclose(mine._weights, theirs._weights, atol=1e-5)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: DBM.from_pretrained([]), "at least one RBM"),
        (
            lambda: DBM.from_pretrained([RBM(np.zeros((3, 2)), np.zeros(3), np.zeros(2))] * 2),
            "bottom RBM to have two copies of its visible",
        ),
        (lambda: DBM.from_centered([np.zeros((3, 2))], [np.zeros(3), np.zeros(2)], [0.5]), "got 1"),
        (
            lambda: DBM.from_centered(
                [np.zeros((1, 2))], [units.Gaussian([0.0]), np.zeros(2)], [0.5, 0.5]
            ),
            "energy is linear in their features; got Gaussian",
        ),
        (
            lambda: DBM.from_centered(
                [np.zeros((3, 2))], [np.zeros(3), np.zeros(2)], [np.zeros(2), 0.5]
            ),
            r"of shape \(3,\); got \(2,\)",
        ),
    ],
)
def test_refused(call, message):
    with pytest.raises(ValueError, match=message):
        call()


# ----- training --------------------------------------------------------------------------------


DATA = np.repeat(np.random.default_rng(0).integers(0, 2, (400, 2)), 3, axis=1)
"""Bars in two places: the likelihood is -2 log 2 at best, -6 log 2 for independent units."""


def trained(program, loss, step_size, **model_kwargs):
    svi = SVI(program, lambda batch, **kwargs: None, optax.adam(step_size), loss)
    return fit(
        jax.random.key(0),
        svi,
        DATA,
        num_epochs=15,
        batch_size=20,
        progress_bar=False,
        model_kwargs=model_kwargs,
    ).params


def likelihood(dbm):
    return float(-dbm.energy(DATA).mean() - dbm.exact_log_z())


@pytest.mark.slow
def test_pretraining_raises_the_likelihood():
    def layer(batch, lower, below):
        shape = len(below), 4
        weights = numpyro.param("weights", lambda key: 0.05 * jax.random.normal(key, shape))
        biases = numpyro.param("below", below), numpyro.param("above", jnp.zeros(4))
        where = {"is_bottom": lower is None, "is_top": lower is not None}
        batch = jnp.concatenate([batch, batch], -1)
        if lower is not None:
            batch = lower.conditional_hidden(batch).sample(numpyro.prng_key())
        with numpyro.plate("rows", len(batch)):
            numpyro.sample("v", DBM.pretraining_rbm(weights, *biases, **where), obs=batch)

    def rbm_of(params, **where):
        return DBM.pretraining_rbm(params["weights"], params["below"], params["above"], **where)

    loss = ContrastiveDivergence(gradient="centered")
    first = trained(layer, loss, 0.02, lower=None, below=jnp.zeros(6))
    bottom = rbm_of(first, is_bottom=True)
    second = trained(layer, loss, 0.02, lower=bottom, below=jnp.zeros(4))
    dbm = DBM.from_pretrained([bottom, rbm_of(second, is_top=True)])
    assert likelihood(dbm) > -6 * np.log(2) + 0.2


@pytest.mark.slow
def test_joint_training_raises_the_likelihood():
    def joint(batch, start):
        weights = [numpyro.param(f"w{k}", w) for k, w in enumerate(start.weights)]
        biases = [numpyro.param(f"b{k}", u.logits) for k, u in enumerate(start.units)]
        dbm = DBM(weights, biases)
        persistent_chains("chains", 50, dbm)
        with numpyro.plate("rows", len(batch)):
            numpyro.sample("v", dbm, obs=batch)

    rng = np.random.default_rng(0)
    bars = np.repeat(np.eye(2), 3, axis=0) @ np.repeat(np.eye(2), 2, axis=1)
    weights = [bars + 0.05 * rng.normal(size=(6, 4)), 0.05 * rng.normal(size=(4, 4))]
    start = DBM([jnp.float32(w) for w in weights], [-jnp.ones(6), -jnp.ones(4), jnp.zeros(4)])
    loss = PersistentContrastiveDivergence(positive="mean_field")
    found = trained(joint, loss, 0.005, start=start)
    end = DBM([found["w0"], found["w1"]], [found[f"b{k}"] for k in range(3)])
    assert likelihood(end) > likelihood(start) + 0.4
