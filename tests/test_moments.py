"""Running moments against those of the samples that the same run would have collected."""

import pickle
from functools import cache

import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
import pytest
from chains import run
from numpyro.infer import MCMC, NUTS, Gibbs
from registry import Case

import numpyro_ebm as ebm
from numpyro_ebm.kernels import histogram, sums

BINARY = Case("Bernoulli", "Bernoulli", 900).build()
SPIN = Case("Spin", "Bernoulli", 901).build()
OPTIONS = {"num_warmup": 7, "num_samples": 60, "num_chains": 2, "extra_fields": ("energy",)}


def slow(*case):
    return pytest.param(*case, marks=pytest.mark.slow)


METHODS = ["vectorized", "parallel", slow("sequential"), slow(jax.vmap)]


def two_sites():
    v = numpyro.sample("v", BINARY)
    with numpyro.plate("copy", 2):
        numpyro.sample("s", SPIN)
    numpyro.deterministic("third", v.sum(-1) / 3)


def normal():
    numpyro.sample("x", dist.Normal(1e4, 1.0).expand([2]).to_event(1))


def mixed():
    s = numpyro.sample("s", dist.Normal(0, 1))
    v = numpyro.sample("v", BINARY)
    numpyro.sample("y", dist.Normal(s + v, 1.0).to_event(1), obs=np.ones(3))


def kernel_of(name):
    return {
        "BlockGibbs": lambda: ebm.BlockGibbs(two_sites),
        "MALA": lambda: ebm.MALA(normal),
        "NUTS": lambda: NUTS(normal),
        "Gibbs": lambda: Gibbs([(ebm.BlockGibbs(mixed), ebm.energy_sites), (NUTS(mixed), None)]),
    }[name]()


@cache
def both(name, method="vectorized", **options):
    """The same run with samples, and with moments."""
    options = OPTIONS | {"chain_method": method} | options
    if name in ("NUTS", "Gibbs"):
        field = "potential_energy" if name == "NUTS" else "block_states.0.energy"
        options["extra_fields"] = (field,)
    samples = run(kernel_of(name), **options)
    kernel = ebm.RunningMoments(kernel_of(name))
    mcmc = run(kernel, **options)
    return samples, mcmc, kernel.moments(mcmc)


def assert_same_moments(samples, moments, rtol=1e-5):
    assert set(samples) == set(moments.mean)
    for name, values in samples.items():
        values = np.asarray(values, np.float64)
        num_chains, num_draws = values.shape[:2]
        assert (moments.num_chains, moments.num_draws) == (num_chains, num_draws)
        np.testing.assert_allclose(moments.chain_means[name], values.mean(1), rtol, rtol)
        if num_draws > 1:
            variances = values.var(1, ddof=1)
            np.testing.assert_allclose(moments.chain_variances[name], variances, 10 * rtol, rtol)
        flat = values.reshape(num_chains * num_draws, -1)
        np.testing.assert_allclose(moments.mean[name].ravel(), flat.mean(0), rtol, rtol)
        variance = flat.var(0, ddof=1)
        np.testing.assert_allclose(moments.variance[name].ravel(), variance, 10 * rtol, rtol)
        covariance = np.atleast_2d(np.cov(flat.T))
        np.testing.assert_allclose(moments.covariance[name], covariance, 10 * rtol, rtol)


@pytest.mark.filterwarnings("ignore:Some donated buffers")
@pytest.mark.parametrize("method", METHODS)
def test_moments_are_those_of_the_samples(method):
    samples, mcmc, moments = both("BlockGibbs", method)
    collected = samples.get_samples(group_by_chain=True)
    assert_same_moments(collected, moments, 1e-6)
    assert mcmc.get_samples() == {}
    energy = np.asarray(samples.get_extra_fields(group_by_chain=True)["energy"])
    np.testing.assert_array_equal(mcmc.get_extra_fields(group_by_chain=True)["energy"], energy)
    counts, _ = np.histogram(energy, moments.energy_edges)
    np.testing.assert_array_equal(moments.energy_counts, counts)
    assert counts.sum() == energy.size
    assert np.ptp(np.nonzero(counts)[0]) >= 31  # resolution: half of the bins
    np.testing.assert_allclose(moments.energy_mean, energy.mean(), rtol=1e-6)
    standard = energy.astype(np.float64).mean(1).std(ddof=1) / 2**0.5
    np.testing.assert_allclose(moments.energy_std_error, standard, rtol=1e-4)


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("MALA", {}),
        slow("NUTS", {}),
        ("BlockGibbs", {"num_chains": 1}),
        slow("Gibbs", {"method": jax.vmap}),
        slow("BlockGibbs", {"num_samples": 1, "num_chains": 3}),
        slow("BlockGibbs", {"num_warmup": 0, "num_chains": 1}),
    ],
)
def test_any_kernel(name, options):
    """Also far from zero, and without energy or warm-up."""
    samples, _, moments = both(name, **options)
    assert_same_moments(samples.get_samples(group_by_chain=True), moments)
    assert (moments.energy_counts is None) == (name == "Gibbs")


def test_integers_are_exact():
    samples, _, moments = both("BlockGibbs", "vectorized")
    v = np.asarray(samples.get_samples(group_by_chain=True)["v"], np.float64)
    np.testing.assert_allclose(moments.mean["v"], v.mean((0, 1)), rtol=1e-14)
    covariance = np.cov(v.reshape(-1, v.shape[-1]).T)
    np.testing.assert_allclose(moments.covariance["v"], covariance, rtol=1e-12, atol=1e-14)


def test_diagnostics_are_those_of_the_samples():
    samples, _, moments = both("BlockGibbs", "vectorized")
    v = {"v": np.asarray(samples.get_samples(group_by_chain=True)["v"])}
    np.testing.assert_allclose(moments.nested_rhat(2)["v"], ebm.nested_rhat(v, 2)["v"], rtol=1e-9)
    means = v["v"].mean(1)
    np.testing.assert_allclose(moments.std_error["v"], means.std(0, ddof=1) / 2**0.5, rtol=1e-6)
    between, within = means.var(0, ddof=1), v["v"].var(1, ddof=1).mean(0)
    expected = np.sqrt(59 / 60 + between / within)
    np.testing.assert_allclose(moments.rhat()["v"], expected, rtol=1e-6)
    single = both("BlockGibbs", num_chains=1)[2]
    assert np.isnan(single.std_error["v"]).all()
    assert np.isnan(single.rhat()["v"]).all()


def test_moments_reach_xarray():
    moments = both("BlockGibbs", "vectorized")[2]
    group = moments.to_datatree()["moments"]
    assert group["chain_mean_s"].dims == ("chain", "s_dim_0", "s_dim_1")
    np.testing.assert_array_equal(group["mean_v"], moments.mean["v"])
    np.testing.assert_array_equal(group["covariance_v"], moments.covariance["v"])
    assert group["energy_edges"].size == group["energy_counts"].size + 1
    assert (group.attrs["num_chains"], group.attrs["num_draws"]) == (2, 60)


def test_covariance_can_be_left_out():
    kernel = ebm.RunningMoments(ebm.BlockGibbs(two_sites), covariance=False)
    moments = kernel.moments(run(kernel, **OPTIONS))
    full = both("BlockGibbs", "vectorized")[2]
    assert moments.covariance is None
    np.testing.assert_allclose(moments.variance["v"], full.variance["v"], rtol=1e-12)


@pytest.mark.slow
def test_a_run_that_goes_on_adds_to_the_sums():
    options = {"num_warmup": 7, "num_samples": 30, "num_chains": 2, "progress_bar": False}
    kernel = ebm.RunningMoments(ebm.BlockGibbs(two_sites))
    mcmc = MCMC(kernel, chain_method="vectorized", **options)
    mcmc.warmup(jax.random.key(0))
    assert np.all(mcmc.last_state.num_draws == 0)
    with pytest.raises(ValueError, match="draws after the warm-up; got none"):
        kernel.moments(mcmc)
    mcmc.run(mcmc.post_warmup_state.rng_key)
    assert kernel.moments(mcmc).num_draws == 30
    mcmc.post_warmup_state = mcmc.last_state
    mcmc.run(mcmc.post_warmup_state.rng_key)
    assert kernel.moments(mcmc).num_draws == 60
    once = both("BlockGibbs", "vectorized")[2]
    np.testing.assert_allclose(kernel.moments(mcmc).mean["v"], once.mean["v"], rtol=1e-12)


def test_progress_bar_thinning_and_pickle():
    kernel = ebm.RunningMoments(ebm.BlockGibbs(two_sites))
    mcmc = MCMC(kernel, num_warmup=5, num_samples=20, thinning=4, progress_bar=True)
    mcmc.run(jax.random.PRNGKey(0))
    assert kernel.moments(mcmc).num_draws == 20
    mcmc.print_summary()
    again = pickle.loads(pickle.dumps(mcmc))
    assert again.sampler.moments(again).num_draws == 20
    assert again.sampler.model is not None


def live_bytes():
    return sum(x.nbytes for x in jax.live_arrays())


@pytest.mark.slow
def test_memory_does_not_grow_with_the_number_of_samples():
    def used(num_samples):
        kernel = ebm.RunningMoments(ebm.BlockGibbs(two_sites))
        before = live_bytes()
        options = {"num_warmup": 2, "num_chains": 3, "num_samples": num_samples}
        mcmc = run(kernel, **options)
        assert kernel.moments(mcmc).num_draws == num_samples
        return live_bytes() - before

    assert used(500) <= used(10) + 1000


# ----- sums --------------------------------------------------------------------------------


@jax.jit
def _summed(values):
    def step(carry, x):
        total, number = carry
        return (sums.add(total, x, number), number + 1), None

    start = sums.empty(*values.shape[1:], jnp.float32, covariance=True), jnp.zeros((), jnp.int32)
    return jax.lax.scan(step, start, values)[0]


@pytest.mark.parametrize("offset", [0.0, 1e3])
def test_sums_of_many_terms_keep_their_digits(offset):
    """A plain float32 sum of so many squares is wrong in the third digit."""
    rng = np.random.default_rng(0)
    values = (offset + rng.normal(size=(300_000, 3, 2)) * [1, 10]).astype(np.float32)
    values[:, 1] += 3  # chains apart
    total, number = _summed(values)
    moments = sums.moments([total], int(number))
    exact = values.astype(np.float64)
    np.testing.assert_allclose(moments.means, exact.mean(0), rtol=1e-7, atol=1e-7)
    np.testing.assert_allclose(moments.variances, exact.var(0, ddof=1), rtol=1e-7)
    covariance = np.cov(exact.reshape(-1, 2).T)
    np.testing.assert_allclose(moments.covariance, covariance, rtol=1e-6, atol=1e-6)


def test_parts_are_joined():
    values = np.random.default_rng(1).normal(5, 1, (40, 6, 2)).astype(np.float32)
    parts = [_summed(values[:, :2])[0], _summed(values[:, 2:4])[0], _summed(values[:, 4:])[0]]
    joint, whole = sums.moments(parts, 40), sums.moments([_summed(values)[0]], 40)
    np.testing.assert_allclose(joint.means, whole.means, rtol=1e-12)
    np.testing.assert_allclose(joint.covariance, whole.covariance, rtol=1e-5)


# ----- histogram ---------------------------------------------------------------------------

STREAMS = {
    "constant": np.full((5, 3), -7.25),
    "normal": np.random.default_rng(0).normal(-100, 5, (50, 20)),
    "zero first": np.r_[np.zeros((1, 4)), np.random.default_rng(1).normal(0, 1, (20, 4))],
    "drifting": np.arange(200.0)[:, None] * np.array([[1.0, -3.0]]),
    "exploding": np.array([[1e-6, 1.0], [1e3, -2e6], [3e15, -1e9], [0.0, 1e20]]),
    "one chain": np.random.default_rng(2).normal(1e5, 0.01, (30, 1)),
    "not finite": np.array([[np.nan, np.inf], [1.0, -np.inf], [2.0, 3.0]]),
}


@jax.jit
def _histogram(values):
    start = histogram.empty(16)
    return jax.lax.scan(lambda h, x: (histogram.add(h, x), None), start, values)[0]


@pytest.mark.parametrize("name", STREAMS)
def test_histogram_counts_every_number(name):
    values = STREAMS[name].astype(np.float32)
    counted = jax.tree.map(np.asarray, _histogram(values))
    counts, edges = histogram.merged([counted])
    finite = values[np.isfinite(values)]
    assert counted.not_finite == values.size - finite.size
    np.testing.assert_array_equal(counts, np.histogram(finite, edges)[0])
    assert counts.sum() == finite.size
    width = edges[1] - edges[0]
    span = (finite.max() - finite.min()) / width
    assert span >= 7 or width <= max(np.abs(finite).max(), 1e-30) * 2.0**-19


def test_histograms_of_different_widths_are_joined():
    parts = [_histogram(STREAMS[n].astype(np.float32)) for n in ("normal", "drifting", "constant")]
    counts, edges = histogram.merged([jax.tree.map(np.asarray, part) for part in parts])
    every = np.concatenate([STREAMS[n].ravel() for n in ("normal", "drifting", "constant")])
    np.testing.assert_array_equal(counts, np.histogram(every.astype(np.float32), edges)[0])
    counts, edges = histogram.merged([jax.tree.map(np.asarray, histogram.empty(16))])
    assert counts.sum() == 0
    assert edges.size == 17


# ----- refusals ----------------------------------------------------------------------------


def test_what_is_no_kernel_is_refused():
    with pytest.raises(TypeError, match="`kernel` to be a NumPyro MCMCKernel.*got function"):
        ebm.RunningMoments(two_sites)
    with pytest.raises(ValueError, match="`energy_bins` of at least 2; got 1"):
        ebm.RunningMoments(ebm.BlockGibbs(two_sites), energy_bins=1)


def test_another_run_is_refused():
    samples, mcmc, _ = both("BlockGibbs", "vectorized")
    kernel = ebm.RunningMoments(ebm.BlockGibbs(two_sites))
    with pytest.raises(ValueError, match="this very kernel; got one that runs BlockGibbs"):
        kernel.moments(samples)
    with pytest.raises(ValueError, match="this very kernel"):
        kernel.moments(mcmc)
    with pytest.raises(ValueError, match="has not run"):
        kernel.moments(MCMC(kernel, num_warmup=1, num_samples=1))
