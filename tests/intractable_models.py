"""Posteriors of parameters with an intractable likelihood, and the same on fine grids.

Log Z is found here by dense transfer matrices, enumeration or Kaufman's formula in float64; the
package's own sums are not used.
"""

import itertools
from typing import Any, NamedTuple

import ising_exact
import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
from chains import assert_chain_means, run
from numpyro.diagnostics import effective_sample_size
from scipy.special import logsumexp

import numpyro_ebm as ebm

# ----- log Z ---------------------------------------------------------------------------------


def torus_log_z(rows, columns, coupling, field):
    """Log Z of the Ising model on a torus, by the trace of a power of the dense row matrix."""
    states = np.array(list(itertools.product([-1, 1], repeat=columns)))
    bonds = (states * np.roll(states, 1, 1)).sum(1)
    own = coupling * bonds + field * states.sum(1)
    log_matrix = coupling * (states @ states.T) + own[:, None]
    top = log_matrix.max()
    power = np.linalg.matrix_power(np.exp(log_matrix - top), rows)
    return np.log(np.trace(power)) + rows * top


def torus_statistics(s):
    """Sum over bonds and sum of spins of one lattice, or the means of several."""
    s = np.asarray(s, np.float64)
    bonds = sum((s * np.roll(s, 1, axis)).sum((-2, -1)) for axis in (-2, -1))
    return np.stack([bonds, s.sum((-2, -1))], -1)


# ----- posteriors on a grid ------------------------------------------------------------------


class Grid(NamedTuple):
    """Points of parameters and the posterior probability of each."""

    points: np.ndarray
    probs: np.ndarray

    @classmethod
    def of(cls, axes, log_joint):
        """Normalize a log joint density over a product of axes.

        Axes are midpoints of cells that fill the support, or go far into both tails.
        """
        points = np.array(list(itertools.product(*axes)))
        values = np.array([log_joint(*point) for point in points])
        return cls(points, np.exp(values - logsumexp(values)))

    @property
    def mean(self):
        return self.probs @ self.points

    @property
    def variance(self):
        return self.probs @ (self.points - self.mean) ** 2


def assert_posterior_moments(mcmc, names, grid):
    """Means and variances of the sites lie within four standard errors of the grid's."""
    samples = mcmc.get_samples(group_by_chain=True)
    values = np.stack([np.asarray(samples[name], np.float64) for name in names], -1)
    both = np.concatenate([values, (values - grid.mean) ** 2], -1)
    assert_chain_means(both, np.concatenate([grid.mean, grid.variance]))


def two_sample_z(a, b):
    """Differences between the means of two sets of chains, in standard errors of both."""
    errors = [x.std((0, 1)) / np.sqrt(effective_sample_size(x)) for x in (a, b)]
    return (a.mean((0, 1)) - b.mean((0, 1))) / np.hypot(*errors)


# ----- lattices ------------------------------------------------------------------------------


def lattice_model(s, prior=None, field_prior=None):
    """Ising lattice with a latent coupling and, with ``field_prior``, a latent field."""
    coupling = numpyro.sample("coupling", prior if prior is not None else dist.Normal(0, 0.3))
    field = 0.0 if field_prior is None else numpyro.sample("field", field_prior)
    numpyro.sample("s", ebm.Ising.lattice(jnp.shape(s), coupling, field), obs=s)


def lattice_data(shape, coupling, field=0.0, seed=0):
    """A simulated lattice."""
    ising = ebm.Ising.lattice(shape, coupling, field)
    return ising.sample(jax.random.key(seed))


def lattice_grid(s, prior, field_prior=None):
    """Exact posterior of coupling (and field) of a lattice."""
    (rows, columns), (bonds, total) = s.shape, torus_statistics(s)

    def log_joint(coupling, field=0.0):
        log_prob = float(prior.log_prob(coupling))
        if field_prior is not None:
            log_prob += float(field_prior.log_prob(field))
        return (
            log_prob
            + coupling * bonds
            + field * total
            - torus_log_z(rows, columns, coupling, field)
        )

    priors = [prior] if field_prior is None else [prior, field_prior]
    number = 400 if field_prior is None else 60
    return Grid.of([midpoints(prior, number) for prior in priors], log_joint)


def log_density(prior, x):
    """Log density of a Normal, up to a constant, or of a Uniform inside its support."""
    if isinstance(prior, dist.Uniform):
        return 0.0
    return -(((x - prior.loc) / prior.scale) ** 2) / 2


def midpoints(prior, number):
    """Midpoints of equal cells of the support, or of five standard deviations to both sides."""
    if isinstance(prior, dist.Uniform):
        low, high = float(prior.low), float(prior.high)
    else:
        low, high = float(prior.loc - 5 * prior.scale), float(prior.loc + 5 * prior.scale)
    return low + (high - low) * (np.arange(number) + 0.5) / number


def kaufman_grid(s, prior):
    """Exact posterior of the coupling of a torus without field."""
    bonds, (rows, columns) = torus_statistics(s)[0], s.shape

    def log_joint(coupling):
        log_z = ising_exact.log_z(rows, columns, coupling)
        return log_density(prior, coupling) + coupling * bonds - log_z

    return Grid.of([midpoints(prior, 400)], log_joint)


# ----- a frustrated Boltzmann machine of eight units with two parameters -----------------------

SIGNS = np.triu(np.random.default_rng(8).choice([-1.0, 0.0, 1.0], (8, 8)), 1)
SIGNS = SIGNS + SIGNS.T


def machine_model(x):
    coupling = numpyro.sample("coupling", dist.Normal(0, 1))
    bias = numpyro.sample("bias", dist.Normal(0, 1))
    with numpyro.plate("rows", len(x)):
        numpyro.sample("x", ebm.BoltzmannMachine(coupling * SIGNS, bias * jnp.ones(8)), obs=x)


def machine_data(num_rows=20, seed=0):
    machine = ebm.BoltzmannMachine(0.6 * SIGNS, -0.3 * jnp.ones(8))
    return machine.sample(jax.random.key(seed), (num_rows,))


def machine_grid(x):
    """Exact posterior by enumeration of the 256 states."""
    states = np.array(list(itertools.product([0, 1], repeat=8)), np.float64)
    pairs, ones = (states @ SIGNS * states).sum(1) / 2, states.sum(1)
    x = np.asarray(x, np.float64)
    own, count = (x @ SIGNS * x).sum() / 2, x.sum()

    def log_joint(coupling, bias):
        log_z = logsumexp(coupling * pairs + bias * ones)
        return -(coupling**2 + bias**2) / 2 + coupling * own + bias * count - len(x) * log_z

    return Grid.of([np.linspace(-1.5, 3, 91), np.linspace(-3, 2, 91)], log_joint)


# ----- running -------------------------------------------------------------------------------


def sample(kernel, *args, num_samples=2000, num_warmup=500, num_chains=4, **options) -> Any:
    """Run a kernel on vectorized chains."""
    return run(
        kernel,
        *args,
        num_samples=num_samples,
        num_warmup=num_warmup,
        num_chains=num_chains,
        **options,
    )
