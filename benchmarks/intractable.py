"""Posterior of the coupling of a 16x16 Ising lattice: effective draws per second of each kernel.

    python benchmarks/intractable.py

The data are one simulated torus without field, so that the exact posterior is known from
Kaufman's closed form of log Z. Every kernel warms up, then one compiled loop over vectorized chains
is timed. Printed are the mean acceptance probability, effective draws (of the mean), those per
second, and the errors of posterior mean and standard deviation: in standard errors, and in
posterior standard deviations, where approximate kernels show their bias. Pseudolikelihood by
`NUTS` stands beside them.
"""

import argparse
import sys
import time
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
from numpyro.diagnostics import effective_sample_size
from numpyro.infer import NUTS

import numpyro_ebm as ebm
from numpyro_ebm.kernels import AuxiliaryChain, SwendsenWangStep

sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))
import ising_exact

HIGHEST = 0.42


def model(s):
    coupling = numpyro.sample("coupling", dist.Uniform(0, HIGHEST))
    numpyro.sample("s", ebm.Ising.lattice((16, 16), coupling), obs=s)


KERNELS = {
    "Exchange, coupling from the past": lambda: ebm.Exchange(model),
    "  3 bridges": lambda: ebm.Exchange(model, num_bridges=3),
    "  Langevin proposals": lambda: ebm.Exchange(model, proposal="langevin"),
    "  chain of 10 sweeps": lambda: ebm.Exchange(model, auxiliary=AuxiliaryChain(10)),
    "  chain of 100 sweeps": lambda: ebm.Exchange(model, auxiliary=AuxiliaryChain(100)),
    "  chain of 10 cluster moves": lambda: ebm.Exchange(
        model, auxiliary=AuxiliaryChain(10, SwendsenWangStep())
    ),
    "AuxiliaryVariable": lambda: ebm.AuxiliaryVariable(model),
    "  10 bridges": lambda: ebm.AuxiliaryVariable(model, num_bridges=10),
    "PseudoMarginal, 5 particles, 5 bridges": lambda: ebm.PseudoMarginal(model),
    "NoisyMALA, 10 draws": lambda: ebm.NoisyMALA(model),
    "NoisyHMC, 3 steps, 10 draws": lambda: ebm.NoisyHMC(model),
    "pseudolikelihood, NUTS": lambda: NUTS(ebm.pseudolikelihood(model)),
}


def exact_posterior(s):
    """Mean and standard deviation of the coupling."""
    s = np.asarray(s, np.float64)
    bonds = sum((s * np.roll(s, 1, axis)).sum() for axis in (0, 1))
    grid = HIGHEST * (np.arange(2000) + 0.5) / 2000
    log_probs = np.array([k * bonds - ising_exact.log_z(16, 16, k) for k in grid])
    probs = np.exp(log_probs - log_probs.max())
    probs /= probs.sum()
    mean = probs @ grid
    return mean, np.sqrt(probs @ (grid - mean) ** 2)


def measure(kernel, s, options):
    """Draws (chain, draw), their mean acceptance probability, and the seconds they took."""
    keys = jax.random.split(jax.random.key(1), options.num_chains)
    state = kernel.init(keys, options.num_warmup, None, (s,), {})

    def loop(length):
        def step(state, _):
            state = kernel.sample(state, (s,), {})
            z = state.z["coupling"]
            value = HIGHEST * jax.nn.sigmoid(z) if isinstance(kernel, NUTS) else z
            return state, (value, state.accept_prob)

        return jax.jit(lambda state: jax.lax.scan(step, state, length=length))

    state, _ = loop(options.num_warmup)(state)
    compiled = loop(options.num_samples).lower(state).compile()
    start = time.perf_counter()
    _, (draws, accept) = jax.block_until_ready(compiled(state))
    seconds = time.perf_counter() - start
    return np.asarray(draws, np.float64).T, float(jnp.mean(accept)), seconds


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--coupling", type=float, default=0.3, help="that the data are made with")
    parser.add_argument("--num-chains", type=int, default=4)
    parser.add_argument("--num-warmup", type=int, default=200)
    parser.add_argument("--num-samples", type=int, default=2000)
    parser.add_argument("--only", default="", help="kernels with this in their name")
    options = parser.parse_args()
    true = ebm.Ising.lattice((16, 16), options.coupling)
    s = ebm.perfect_sample(jax.random.key(0), true).value
    mean, scale = exact_posterior(s)
    print(f"exact posterior of the coupling: mean {mean:.4f}, standard deviation {scale:.4f}")
    print(f"{'':40s} accept     ESS  ESS/s    mean (s.e.)      sd (s.e.)")
    for name, make in KERNELS.items():
        if options.only not in name:
            continue
        draws, accept, seconds = measure(make(), s, options)
        away = draws - mean
        errors = []
        for values, exact in ((away, 0.0), (away**2, scale**2)):
            se = values.std() / np.sqrt(effective_sample_size(values))
            errors.append((values.mean() - exact, se))
        ess = effective_sample_size(draws)
        (shift, shift_se), (spread, spread_se) = errors
        print(
            f"{name:40s} {accept:6.2f} {ess:7.0f} {ess / seconds:6.0f} "
            f"{shift / scale:7.3f} ({shift / shift_se:5.1f}) "
            f"{spread / (2 * scale**2):7.3f} ({spread / spread_se:5.1f})",
            flush=True,
        )


if __name__ == "__main__":
    main()
