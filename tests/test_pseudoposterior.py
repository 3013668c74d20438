"""The pseudolikelihood posterior of a NumPyro model."""

import itertools
import pickle

import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
import pytest
from chains import assert_chain_means
from numpyro import handlers
from numpyro.infer import MCMC, NUTS, SVI, Predictive, Trace_ELBO
from numpyro.infer.autoguide import AutoNormal
from numpyro.infer.util import log_density, log_likelihood
from scipy import stats

import numpyro_ebm as ebm
from numpyro_ebm.pseudoposterior import Pseudolikelihood

SHAPE = (3, 3)
STATES = np.array(list(itertools.product([-1, 1], repeat=9))).reshape(-1, *SHAPE)
BONDS = (STATES * np.roll(STATES, 1, 1)).sum((1, 2)) + (STATES * np.roll(STATES, 1, 2)).sum((1, 2))
ROWS = np.asarray(ebm.Ising.lattice(SHAPE, 0.15).sample(jax.random.key(0), (8,)))
COUPLINGS = np.linspace(-0.6, 0.9, 301)


def log_conditionals(coupling, row, field=0.0):
    """Sum over the sites of log p(site | others), from the probabilities of all states."""
    log_p = coupling * BONDS + field * STATES.sum((1, 2))
    table = dict(zip(map(bytes, STATES.astype(np.int8)), log_p, strict=True))
    row, total = row.astype(np.int8), 0.0
    for site in np.ndindex(*SHAPE):
        flipped = row.copy()
        flipped[site] *= -1
        total += table[row.tobytes()] - np.logaddexp(table[row.tobytes()], table[flipped.tobytes()])
    return total


def lattice(coupling, field=0.0, **kwargs):
    return ebm.Ising.lattice(SHAPE, coupling, field, **kwargs)


def model(rows=None, *, num=8, observe="plain", subsample=None):
    coupling = numpyro.sample("coupling", dist.Normal(0, 1))
    if observe == "expand":
        numpyro.sample("s", lattice(coupling).expand([num]).to_event(1), obs=rows)
        return
    with numpyro.plate("rows", num, subsample_size=subsample) as index:
        rows = rows if subsample is None else jnp.asarray(rows)[index]
        if observe == "mask":
            with handlers.mask(mask=jnp.arange(num) % 2 == 0):
                numpyro.sample("s", lattice(coupling), obs=rows)
        elif observe == "masked":
            numpyro.sample("s", lattice(coupling).mask(jnp.arange(num) < 3), obs=rows)
        elif observe == "scale":
            with handlers.scale(scale=0.5):
                numpyro.sample("s", lattice(coupling), obs=rows)
        elif observe == "covariates":
            field = 0.1 * jnp.arange(num)[:, None, None]
            numpyro.sample("s", lattice(coupling, field), obs=rows)
        else:
            numpyro.sample("s", lattice(coupling), obs=rows)
            numpyro.sample("other", dist.Normal(coupling, 1), obs=jnp.ones(len(index)))


def expected(coupling, observe):
    prior = stats.norm.logpdf(coupling)
    field = 0.1 * np.arange(8) if observe == "covariates" else np.zeros(8)
    terms = np.array([log_conditionals(coupling, r, f) for r, f in zip(ROWS, field, strict=True)])
    weights = {
        "mask": np.arange(8) % 2 == 0,
        "masked": np.arange(8) < 3,
        "scale": np.full(8, 0.5),
    }.get(observe, np.ones(8))
    other = 8 * stats.norm.logpdf(1, coupling) if observe == "plain" else 0.0
    return prior + weights @ terms + other


@pytest.mark.parametrize("observe", ["plain", "expand", "mask", "masked", "scale", "covariates"])
def test_density_is_that_of_conditionals_by_brute_force(observe):
    with jax.enable_x64(True):
        rows = ROWS.copy()
        if observe == "masked":
            rows[5] = 7  # not counted, whatever it is
        pseudo = ebm.pseudolikelihood(model)
        for coupling in (-0.4, 0.3):
            args = (rows,), {"observe": observe}, {"coupling": jnp.asarray(coupling)}
            found, _ = log_density(pseudo, *args)
            np.testing.assert_allclose(found, expected(coupling, observe), rtol=1e-9)


def test_subsampled_rows_are_scaled():
    seeded = handlers.seed(ebm.pseudolikelihood(model), jax.random.key(1))
    trace = handlers.trace(seeded).get_trace(ROWS, subsample=2)
    index, coupling = trace["rows"]["value"], float(trace["coupling"]["value"])
    found = jax.jit(trace["s"]["fn"].log_prob)(trace["s"]["value"]) * trace["s"]["scale"]
    wanted = [4 * log_conditionals(coupling, ROWS[i]) for i in index]
    np.testing.assert_allclose(found, wanted, rtol=1e-4)


def test_several_sites_and_those_that_stay():
    def several(rows):
        coupling = numpyro.sample("coupling", dist.Normal(0, 1))
        numpyro.sample("first", lattice(coupling), obs=rows[0])
        numpyro.sample("second", lattice(2 * coupling), obs=rows[1])
        numpyro.sample("exact", lattice(coupling, normalizer="exact"), obs=rows[2])
        numpyro.sample("factor", lattice(coupling, normalizer="ignore"), obs=rows[2])

    held = handlers.substitute(ebm.pseudolikelihood(several), data={"coupling": 0.3})
    trace = handlers.trace(handlers.seed(held, jax.random.key(0))).get_trace(ROWS)
    kinds = {name: type(site["fn"]).__name__ for name, site in trace.items()}
    assert kinds["first"] == kinds["second"] == "Pseudolikelihood"
    assert kinds["exact"] == kinds["factor"] == "Ising"
    found = [jax.jit(trace[n]["fn"].log_prob)(trace[n]["value"]) for n in ("first", "second")]
    wanted = [log_conditionals(0.3, ROWS[0]), log_conditionals(0.6, ROWS[1])]
    np.testing.assert_allclose(found, wanted, rtol=1e-5)


@pytest.fixture(scope="module")
def chains():
    kernel = NUTS(ebm.pseudolikelihood(model))
    mcmc = MCMC(kernel, num_warmup=300, num_samples=1500, progress_bar=False)
    mcmc.run(jax.random.key(2), ROWS, observe="scale")
    return mcmc


def test_nuts_samples_the_pseudo_posterior(chains):
    log_p = np.array([expected(c, "scale") for c in COUPLINGS])
    probs = np.exp(log_p - log_p.max())
    probs /= probs.sum()
    mean = probs @ COUPLINGS
    draws = np.asarray(chains.get_samples()["coupling"], np.float64)
    deviations = np.stack([draws - mean, (draws - mean) ** 2], -1)
    assert_chain_means(deviations[None], np.array([0.0, probs @ (COUPLINGS - mean) ** 2]))


def test_arviz_cannot_mistake_it_for_a_likelihood(chains):
    draws = {"coupling": chains.get_samples()["coupling"][:3]}
    with pytest.warns(UserWarning, match="not normalized"):
        found = log_likelihood(chains.sampler.model, draws, ROWS, observe="scale")
    assert np.isnan(found["s"]).all()


def test_predictive_draws_from_the_model(chains):
    draws = {"coupling": jnp.full(500, 0.2)}
    predictive = Predictive(chains.sampler.model, draws)
    found = predictive(jax.random.key(3), num=4)["s"]
    assert found.shape == (500, 4, *SHAPE)
    sums = (found * jnp.roll(found, 1, 2)).sum((2, 3)) + (found * jnp.roll(found, 1, 3)).sum((2, 3))
    p = np.exp(0.2 * BONDS)
    mean = p @ BONDS / p.sum()
    assert abs(sums.mean() - mean) < 4 * sums.std() / sums.size**0.5


@pytest.mark.slow
def test_svi():
    guide = AutoNormal(ebm.pseudolikelihood(model))
    svi = SVI(ebm.pseudolikelihood(model), guide, numpyro.optim.Adam(0.03), Trace_ELBO())
    result = svi.run(jax.random.key(4), 300, ROWS, subsample=4, progress_bar=False)
    assert np.isfinite(result.losses).all()
    assert abs(result.params["coupling_auto_loc"] - 0.3) < 0.3


def test_it_is_a_distribution_and_the_model_pickles():
    pseudo = Pseudolikelihood(lattice(0.1, jnp.array([0.1, 0.4])[:, None, None]))
    again = jax.tree.unflatten(*reversed(jax.tree.flatten(pseudo)))
    assert again.batch_shape == (2,)
    assert again.event_shape == SHAPE
    found = jax.jit(lambda d, rows: d.log_prob(rows))(again, ROWS[:2])
    np.testing.assert_allclose(found, pseudo.log_prob(ROWS[:2]), rtol=1e-6)
    assert pseudo.sample(jax.random.key(0), (5,)).shape == (5, 2, *SHAPE)
    assert pickle.loads(pickle.dumps(ebm.pseudolikelihood(model))) is not None


def no_site(rows):
    numpyro.sample("mu", dist.Normal(0, 1))
    numpyro.sample("s", lattice(0.1, normalizer="exact"), obs=rows[0])


def real(rows):
    scale = numpyro.sample("scale", dist.HalfNormal(1))
    rbm = ebm.RBM(jnp.ones((2, 2)), ebm.units.Gaussian(jnp.zeros(2), scale), jnp.zeros(2))
    numpyro.sample("s", rbm, obs=jnp.zeros(2))


ERRORS = {
    "no site": (no_site, ROWS, "energy-based site whose log Z is unknown.*has none"),
    "real": (real, ROWS, "discrete units at site 's'.*ScoreMatching"),
    "outside": (model, 0 * ROWS, "obs of site 's'.*support"),
}


@pytest.mark.parametrize(("broken", "rows", "message"), ERRORS.values(), ids=ERRORS)
def test_errors(broken, rows, message):
    with pytest.raises(ValueError, match=message):
        handlers.seed(ebm.pseudolikelihood(broken), jax.random.key(0))(rows)
