"""The spread of a pseudo-posterior against that of the posterior, before and after adjustment."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
import pytest
from numpyro.infer import MCMC, NUTS
from scipy import stats

import numpyro_ebm as ebm
from numpyro_ebm.evidence.model import ModelTarget
from numpyro_ebm.pseudoposterior.mode import find_mode
from numpyro_ebm.pseudoposterior.sandwich import adjusting_matrix, normality_doubts

SHAPE, NUM_ROWS = (3, 3), 12
STATES = np.array(list(itertools.product([-1, 1], repeat=9))).reshape(-1, *SHAPE)
BONDS = (STATES * np.roll(STATES, 1, 1)).sum((1, 2)) + (STATES * np.roll(STATES, 1, 2)).sum((1, 2))
GRID = np.linspace(-0.4, 0.6, 401)
SCALE = 0.1
"""Of the prior."""


def model(rows, normalizer="guard", scale=SCALE):
    coupling = numpyro.sample("coupling", dist.Normal(0, scale))
    numpyro.deterministic("twice", 2 * coupling)
    with numpyro.plate("rows", len(rows)):
        numpyro.sample("s", ebm.Ising.lattice(SHAPE, coupling, normalizer=normalizer), obs=rows)


def rows_at(coupling, seed):
    """Exact draws, by the probabilities of all states."""
    p = np.exp(coupling * BONDS)
    return STATES[np.random.default_rng(seed).choice(len(STATES), NUM_ROWS, p=p / p.sum())]


@jax.jit
def log_posteriors(rows):
    """Log of the pseudo-posterior and of the posterior on the grid."""

    def one(coupling):
        lattice = ebm.Ising.lattice(SHAPE, coupling)
        prior = dist.Normal(0, SCALE).log_prob(coupling)
        log_z = jax.scipy.special.logsumexp(coupling * BONDS)
        exact = -lattice.energy(rows).sum() - NUM_ROWS * log_z
        return prior + lattice.log_pseudolikelihood(rows).sum(), prior + exact

    return jax.vmap(one)(jnp.asarray(GRID))


def summary(log_p):
    """Probabilities on the grid, mean and standard deviation."""
    p = np.exp(np.asarray(log_p, np.float64) - np.max(log_p))
    p /= p.sum()
    mean = p @ GRID
    return p, mean, np.sqrt(p @ (GRID - mean) ** 2)


ROWS = rows_at(0.1, 0)
PSEUDO = ebm.pseudolikelihood(model)


def adjust(draws, rows=ROWS, num_simulations=2000, **kwargs):
    return ebm.godambe_adjustment(
        jax.random.key(1),
        PSEUDO,
        {"coupling": draws},
        model_args=(rows,),
        model_kwargs=kwargs,
        num_simulations=num_simulations,
    )


@pytest.fixture(scope="module")
def adjusted():
    p, _, _ = summary(log_posteriors(ROWS)[0])
    draws = np.random.default_rng(2).choice(GRID, (4, 1000), p=p)
    return adjust(draws)


def test_pseudo_posterior_is_too_narrow_and_the_adjusted_one_is_not(adjusted):
    _, pseudo_mean, pseudo = summary(log_posteriors(ROWS)[0])
    _, mean, exact = summary(log_posteriors(ROWS)[1])
    draws = adjusted.draws["coupling"]
    error = draws.std() * np.sqrt(1 / (2 * draws.size) + 1 / (2 * 2000))
    assert exact - pseudo > 4 * error  # with certainty: both are sums over a grid
    assert abs(pseudo - 0.84 * exact) < 0.05 * exact
    assert abs(draws.std() - exact) < (exact - pseudo) / 3
    assert abs(draws.std() - exact) < 4 * error
    assert abs(draws.mean() - pseudo_mean) < 4 * pseudo / draws.size**0.5


def test_matrices_are_those_of_enumeration(adjusted):
    """H by differences, and J as the variance over all states, at the mode."""
    center = adjusted.center.item()
    assert adjusted.ok
    np.testing.assert_allclose(adjusted.mode["coupling"], center, rtol=1e-6)
    with jax.enable_x64(True):

        def pseudo(coupling, rows):
            return ebm.Ising.lattice(SHAPE, coupling).log_pseudolikelihood(rows)

        score = jax.grad(lambda c: pseudo(c, ROWS).sum())
        curvature, slope, of_states = jax.jit(
            lambda c: (-jax.grad(score)(c), score(c), jax.jacfwd(pseudo)(c, STATES))
        )(jnp.asarray(center))
    curvature, slope, of_states = float(curvature), float(slope), np.asarray(of_states)
    assert abs(slope - center / SCALE**2) < 1e-2 * adjusted.hessian.item() ** 0.5
    p = np.exp(center * BONDS)
    p /= p.sum()
    assert abs(p @ of_states) < 1e-6 * of_states.std()  # unbiased
    variance = NUM_ROWS * p @ of_states**2
    np.testing.assert_allclose(adjusted.hessian, curvature + SCALE**-2, rtol=1e-4)
    np.testing.assert_allclose(adjusted.prior_hessian, SCALE**-2, rtol=1e-4)
    assert abs(adjusted.score_variance.item() / variance - 1) < 4 * np.sqrt(2 / 2000)
    precision = curvature**2 / adjusted.score_variance + SCALE**-2
    np.testing.assert_allclose(adjusted.matrix, np.sqrt(adjusted.hessian / precision), rtol=1e-4)


def test_draws_are_moved_around_the_mode_and_grouped_as_given(adjusted):
    draws = np.random.default_rng(3).normal(0.1, 0.05, 30).astype(np.float32)
    found = adjust(draws)
    wanted = found.center + found.matrix.item() * (draws - found.center)
    assert found.draws["coupling"].shape == (30,)
    np.testing.assert_allclose(found.draws["coupling"], wanted, rtol=1e-4)
    np.testing.assert_allclose(found.draws["twice"], 2 * wanted, rtol=1e-4)
    tree = adjusted.to_datatree()
    assert dict(tree["posterior"]["coupling"].sizes) == {"chain": 4, "draw": 1000}


# ----- several parameters, of any support ---------------------------------------------------


COUPLED = np.triu(np.ones((5, 5)), 1) + np.triu(np.ones((5, 5)), 1).T


def machine(rows):
    """Two parameters, one positive, and a hyperparameter that the data see only through them."""
    spread = numpyro.sample("spread", dist.HalfNormal(1.0))
    coupling = numpyro.sample("coupling", dist.Normal(0, 0.3 + spread))
    bias = numpyro.sample("bias", dist.Gamma(3.0, 3.0))
    with numpyro.plate("rows", len(rows)):
        x = numpyro.sample("x", ebm.BoltzmannMachine(coupling * COUPLED, -bias), obs=rows)
        numpyro.sample("y", dist.Normal(coupling * x.sum(-1), 1.0), obs=0.1 * rows.sum(-1))


@pytest.mark.slow
def test_several_parameters_and_other_likelihoods():
    states = np.array(list(itertools.product([0, 1], repeat=5)))
    log_p = 0.4 * ((states.sum(1) ** 2 - states.sum(1)) / 2) - 1.0 * states.sum(1)
    p, rng = np.exp(log_p), np.random.default_rng(4)
    rows = states[rng.choice(32, 200, p=p / p.sum())]
    draws = {"spread": rng.uniform(0.1, 1, (2, 40)), "bias": rng.uniform(0.8, 1.2, (2, 40))}
    draws["coupling"] = rng.uniform(0.2, 0.5, (2, 40))
    found = ebm.godambe_adjustment(
        jax.random.key(6),
        ebm.pseudolikelihood(machine),
        draws,
        model_args=(rows,),
        num_simulations=400,
    )
    assert found.ok
    assert found.hessian.shape == (3, 3)
    data = found.hessian - found.prior_hessian
    np.testing.assert_allclose(data[0], 0, atol=1e-3)  # spread: known through the prior alone
    inner = np.ix_([1, 2], [1, 2])
    target = found.prior_hessian.copy()
    target[inner] += data[inner] @ np.linalg.inv(found.score_variance[inner]) @ data[inner]
    moved = found.matrix @ np.linalg.inv(found.hessian) @ found.matrix.T
    np.testing.assert_allclose(moved, np.linalg.inv(target), rtol=2e-2, atol=1e-5)
    assert np.all(found.draws["bias"] > 0)
    assert found.draws["spread"].shape == (2, 40)


def test_flat_prior_gives_the_sandwich():
    rng = np.random.default_rng(7)
    roots = rng.normal(size=(2, 4, 4))
    hessian, variance = (root @ root.T + np.eye(4) for root in roots)
    matrix, doubts = adjusting_matrix(hessian, np.zeros((4, 4)), variance)
    inverse = np.linalg.inv(hessian)
    np.testing.assert_allclose(matrix @ inverse @ matrix.T, inverse @ variance @ inverse)
    assert not doubts
    same, _ = adjusting_matrix(hessian, np.zeros((4, 4)), hessian)
    np.testing.assert_allclose(same, np.eye(4), atol=1e-12)  # a likelihood stays as it is
    product = hessian @ matrix
    np.testing.assert_allclose(product, product.T)  # symmetric in the metric H


def fully_visible(rows, normalizer="guard"):
    """All 15 parameters of a Boltzmann machine of 5 units."""
    pairs = numpyro.sample("pairs", dist.Normal(0, 0.5).expand([10]).to_event(1))
    bias = numpyro.sample("bias", dist.Normal(0, 0.5).expand([5]).to_event(1))
    upper = jnp.zeros((5, 5)).at[np.triu_indices(5, 1)].set(pairs)
    with numpyro.plate("rows", len(rows)):
        machine = ebm.BoltzmannMachine(upper + upper.T, bias, normalizer=normalizer)
        numpyro.sample("x", machine, obs=rows)


@pytest.mark.slow
def test_spread_of_every_parameter_of_a_machine():
    upper = np.triu(np.random.default_rng(0).normal(size=(5, 5), scale=0.4), 1)
    machine = ebm.BoltzmannMachine(upper + upper.T, jnp.array([0.3, -0.2, 0.0, 0.5, -0.4]))
    rows = np.asarray(machine.exact_sample(jax.random.key(0), (200,)))

    def run(program, *args):
        mcmc = MCMC(NUTS(program), num_warmup=300, num_samples=2000, progress_bar=False)
        mcmc.run(jax.random.key(1), rows, *args)
        return mcmc

    exact, pseudo = run(fully_visible, "exact"), run(ebm.pseudolikelihood(fully_visible))
    found = ebm.godambe_adjustment(jax.random.key(2), pseudo, num_simulations=1000)
    assert found.ok

    def log_spreads(draws):
        return np.log(np.concatenate([np.asarray(draws[s]).std((0, 1)) for s in ("pairs", "bias")]))

    truth = log_spreads(exact.get_samples(group_by_chain=True))
    before = log_spreads(pseudo.get_samples(group_by_chain=True)) - truth
    after = log_spreads(found.draws) - truth
    print("sd over that of the posterior", np.exp(before).round(2), np.exp(after).round(2))
    error = np.sqrt(2 / (2 * 1000) + 1 / (2 * 1000))  # of chains of ESS 1000 or more, and of J
    assert np.all(before < 0)
    assert before.mean() < -0.15
    assert np.all(np.abs(after) < 4 * error)
    assert abs(after.mean()) < -before.mean() / 3


# ----- calibration ----------------------------------------------------------------------------


@pytest.mark.slow
def test_ranks_are_uniform_only_after_adjustment():
    """Simulation-based calibration: the truth among 399 draws, over 120 data sets."""
    rng, ranks, scores = np.random.default_rng(8), [], []
    for seed in range(120):
        truth = rng.normal(0, SCALE)
        rows = rows_at(truth, seed + 10)
        p, mean, spread = summary(log_posteriors(rows)[0])
        draws = rng.choice(GRID, 399, p=p) + rng.uniform(-0.5, 0.5, 399) * (GRID[1] - GRID[0])
        moved = adjust(draws, rows, 300).draws["coupling"]
        ranks.append([(draws < truth).sum(), (moved < truth).sum()])
        scores.append([(truth - mean) / spread, (truth - moved.mean()) / moved.std()])
    counts = [np.bincount(column // 40, minlength=10) for column in np.transpose(ranks)]
    before, after = (stats.chisquare(count).pvalue for count in counts)
    print("p-values", before, after, "RMS z", np.sqrt(np.mean(np.square(scores), 0)))
    assert before < 1e-3
    assert after > 1e-3


# ----- doubts and errors --------------------------------------------------------------------


def test_a_sampler_that_does_not_mix_is_noticed(monkeypatch):
    def two_states(self, key, shape=()):
        ones = jnp.ones(shape + self.batch_shape + self.event_shape, jnp.int32)
        return ones.at[..., 0, 0].set(jax.random.choice(key, jnp.array([-1, 1])))

    monkeypatch.setattr(ebm.Ising, "exact_sample", two_states)
    with pytest.warns(UserWarning, match="does not average to zero"):
        found = adjust(GRID[:20], num_simulations=50)
    assert not found.ok
    assert "num_sweeps" in repr(found)


def test_too_few_simulations_leave_draws_where_they_are():
    hessian = np.diag([4.0, 9.0])
    with_one = np.outer([1.0, 1.0], [1.0, 1.0])
    matrix, doubts = adjusting_matrix(hessian, np.zeros((2, 2)), with_one)
    assert "ill-conditioned" in doubts[0]
    assert np.isfinite(matrix).all()


def test_curvature_that_is_not_positive_leaves_draws_where_they_are():
    matrix, doubts = adjusting_matrix(-np.eye(2), np.zeros((2, 2)), np.eye(2))
    assert "positive definite" in doubts[0]
    np.testing.assert_array_equal(matrix, np.eye(2))
    matrix, doubts = adjusting_matrix(np.eye(2), np.eye(2), np.zeros((2, 2)))
    assert "say nothing" in doubts[0]
    np.testing.assert_allclose(matrix, np.eye(2))


def test_a_mode_that_is_not_there_is_noticed():
    def tilted(rows):
        coupling = numpyro.sample("coupling", dist.ImproperUniform(dist.constraints.real, (), ()))
        numpyro.factor("tilt", 30.0 * coupling)
        numpyro.sample("s", ebm.Ising.lattice(SHAPE, coupling), obs=rows)

    target = ModelTarget(
        "t", ebm.pseudolikelihood(tilted), (np.ones(SHAPE, int),), needs_likelihood=False
    )
    assert "mode" in find_mode(target, np.array([[0.5]])).doubts()[0]


def test_draws_far_from_normal_are_noticed():
    draws = np.random.default_rng(9).exponential(size=(500, 1))
    assert "far from normal" in normality_doubts(np.eye(1), np.zeros((1, 1)), draws)[0]
    assert not normality_doubts(np.eye(1), np.eye(1), draws)  # of which the data say nothing
    draws = np.random.default_rng(9).normal(size=(500, 1))
    assert not normality_doubts(np.eye(1), np.zeros((1, 1)), draws)


def plain(rows):
    coupling = numpyro.sample("coupling", dist.Normal(0, 1))
    numpyro.sample("y", dist.Normal(coupling, 1), obs=rows.sum())


COUPLING = {"coupling": GRID[:9]}
ERRORS = {
    "no draws": (lambda k: ebm.godambe_adjustment(k, PSEUDO), TypeError, "expected `draws`"),
    "no model": (lambda k: ebm.godambe_adjustment(k, 3, COUPLING), TypeError, "`target`.*int"),
    "posterior itself": (
        lambda k: ebm.godambe_adjustment(k, model, COUPLING, model_args=(ROWS, "exact")),
        ValueError,
        "ebm.pseudolikelihood",
    ),
    "other likelihood": (
        lambda k: ebm.godambe_adjustment(k, plain, COUPLING, model_args=(ROWS,)),
        ValueError,
        "no observed site of this model has a pseudolikelihood",
    ),
    "missing": (
        lambda k: ebm.godambe_adjustment(k, PSEUDO, {"other": GRID}, model_args=(ROWS,)),
        ValueError,
        "every latent site",
    ),
    "num_simulations": (lambda k: adjust(GRID, num_simulations=1), ValueError, "at least 2"),
    "not finite": (lambda k: adjust(GRID * np.nan), ValueError, "401 of 401"),
}


@pytest.mark.parametrize(("call", "error", "message"), ERRORS.values(), ids=ERRORS)
def test_errors(call, error, message):
    with pytest.raises(error, match=message):
        call(jax.random.key(0))
