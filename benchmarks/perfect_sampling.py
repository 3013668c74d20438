"""How long perfect draws of Ising lattices take, near the critical point too.

Coupling from the past on periodic square lattices without field, and a transfer matrix on lattices
of width 12. The critical coupling is log(1 + sqrt(2)) / 2 = 0.4407: there the sweeps that a draw
needs grow like the square of the size and more, above it the two ordered phases keep the chains
apart for longer than any budget. Draws are made one at a time, with different keys; "sweeps" is how
long ago the chains had to start (the median, and the largest), each sweep being of two chains and
all starts together taking twice as many. A draw whose budget ends is reported as such and is no
draw. A torus costs as many times more than a cylinder as a row has states; only the shortest is
timed.
"""

import argparse
import math
import time

import jax
import jax.numpy as jnp
import numpy as np

import numpyro_ebm as ebm
from numpyro_ebm.kernels import CouplingFromThePast, ExactDraws

CRITICAL = math.log(1 + math.sqrt(2)) / 2
COUPLINGS = (0.2, 0.3, 0.4, CRITICAL, 0.5)


def lattice(shape, coupling, periodic):
    """The model, with a traced coupling as in a kernel that proposes it."""
    return ebm.Ising.lattice(shape, coupling, periodic=periodic)


def timed_draws(sampler, shape, coupling, periodic, num_draws):
    """Seconds of each draw, its sweeps, and whether it was complete."""
    draw = jax.jit(lambda key, c: sampler.draw(key, lattice(shape, c, periodic), ()))
    coupling = jnp.float32(coupling)
    jax.block_until_ready(draw(jax.random.key(0), coupling))
    seconds, sweeps, complete = [], [], []
    for seed in range(num_draws):
        start = time.perf_counter()
        result = jax.block_until_ready(draw(jax.random.key(1 + seed), coupling))
        seconds.append(time.perf_counter() - start)
        sweeps.append(int(result.num_sweeps))
        complete.append(bool(result.complete))
    return np.array(seconds), np.array(sweeps), np.array(complete)


def coupling_from_the_past(sizes, couplings, num_draws, max_sweeps):
    """Table of sweeps and seconds."""
    print(f"coupling from the past, periodic, at most {max_sweeps} sweeps\n")
    print("| size | coupling | complete | median sweeps | largest | ms per draw | largest |")
    print("| --- | --- | --- | --- | --- | --- | --- |")
    for size in sizes:
        for coupling in couplings:
            sampler = CouplingFromThePast(max_sweeps)
            seconds, sweeps, complete = timed_draws(
                sampler, (size, size), coupling, True, num_draws
            )
            print(
                f"| {size} x {size} | {coupling:.4f} | {complete.sum()} of {num_draws} | "
                f"{np.median(sweeps):.0f} | {sweeps.max()} | {1e3 * np.median(seconds):.3g} | "
                f"{1e3 * seconds.max():.3g} |",
                flush=True,
            )


def transfer_matrix(lengths, coupling, num_draws):
    """Table of seconds for width 12."""
    print("\ntransfer matrix, width 12, any coupling and field\n")
    print("| lattice | ms per draw | ms per log Z and gradient |")
    print("| --- | --- | --- |")
    for length in lengths:
        for along in (False, True) if length == min(lengths) else (False,):
            shape, periodic = (12, length), (True, along)
            draws = 3 if along else num_draws
            method = ExactDraws("transfer_matrix")
            seconds = timed_draws(method, shape, coupling, periodic, draws)[0]
            slope = jax.jit(
                jax.value_and_grad(lambda c, s=shape, p=periodic: lattice(s, c, p).exact_log_z())
            )
            jax.block_until_ready(slope(jnp.float32(coupling)))
            start = time.perf_counter()
            jax.block_until_ready(slope(jnp.float32(coupling)))
            spent = time.perf_counter() - start
            kind = "torus" if along else "cylinder"
            print(
                f"| {shape[0]} x {shape[1]} {kind} | {1e3 * np.median(seconds):.3g} | "
                f"{1e3 * spent:.3g} |",
                flush=True,
            )


def main():
    """Print both tables."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--sizes", type=int, nargs="+", default=[16, 32])
    parser.add_argument("--couplings", type=float, nargs="+", default=COUPLINGS)
    parser.add_argument("--lengths", type=int, nargs="+", default=[12, 24, 48])
    parser.add_argument("--num-draws", type=int, default=20)
    parser.add_argument("--max-sweeps", type=int, default=2**16)
    options = parser.parse_args()
    coupling_from_the_past(options.sizes, options.couplings, options.num_draws, options.max_sweeps)
    transfer_matrix(options.lengths, 0.4, options.num_draws)


if __name__ == "__main__":
    main()
