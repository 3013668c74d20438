"""A deep belief network 500-500 on fixed binarized MNIST: greedy training, up-down, the bound.

    NUMPYRO_EBM_DATA=folder python benchmarks/deep_belief_network.py

Layer by layer by persistent contrastive divergence (`fit_greedy`), then up-down fine-tuning with
untied recognition weights. After each stage: the variational lower bound of the mean test
log-likelihood, with log Z of the top machine by AIS, beside the bound that Salakhutdinov & Murray
(2008) report. The second layer starts as the first one upside down, without the pixels that are
hardly ever on, where the bound is nearly the likelihood of the first; it is trained at a fifth of
the learning rate. With `--published` the first layer is their RBM, as theirs was. A stage that is
done is read from the output folder when the script is started again.
"""

import argparse
import os
import time
from pathlib import Path

import jax
import jax.numpy as jnp
import numpyro
import optax
from numpyro.infer import SVI
from train_rbm import SETTINGS, optimizer

import numpyro_ebm as ebm

PUBLISHED = -86.2
SIZES = 500, 500


def weigh(rng_key, dbn, data, num_temperatures):
    """Mean test bound of a network; of one layer that is its log-likelihood (from above)."""
    key_base, key_ais, key_bound = jax.random.split(rng_key, 3)
    base = (data.train, *dbn.sample_hidden(key_base, jnp.asarray(data.train)))[-1]
    log_z = ebm.evidence.ais(key_ais, dbn.top, base=base, num_temperatures=num_temperatures)
    return ebm.evidence.variational_bound(key_bound, dbn, data.test, log_z=log_z)


def train_layers(data, options):
    """Machines of the stack, each with the seconds that its training has taken."""
    stack = []
    if options.published:
        stack = [ebm.RBM(**ebm.datasets.load_rbm("rbm_salakhutdinov_murray_cd25_500"))]
        yield "layer 1", ebm.DBN(stack), 0.0
    sizes = zip(SIZES, options.epochs, strict=True)
    for number, (size, epochs) in list(enumerate(sizes, start=1))[len(stack) :]:
        settings = SETTINGS["mnist"]._replace(num_epochs=epochs)
        if stack:
            settings = settings._replace(learning_rate=settings.learning_rate / 5)
        result = ebm.fit_greedy(
            jax.random.key(options.seed),
            jnp.asarray(data.train),
            [size],
            layers=stack,
            optim=optimizer(settings, len(data.train)),
            num_epochs=epochs,
            batch_size=settings.batch_size,
            num_chains=settings.num_chains,
            checkpoint=options.output / "run.safetensors",
            checkpoint_every=10,
            progress_bar=options.progress,
        )
        stack = result.layers
        yield f"layer {number}", result.dbn, result.fits[0].history["seconds"].iloc[-1]


def fine_tune(dbn, data, options):
    """The network with recognition weights of their own, after up-down, and the seconds."""
    start = ebm.DBN(dbn.layers, recognition=dbn.layers[:-1])

    def model(batch):
        network = numpyro.param("dbn", lambda key: start)
        ebm.persistent_chains("chains", 200, network)
        with numpyro.plate("rows", len(batch)):
            numpyro.sample("x", network, obs=batch)

    batch_size = 200
    num_updates = options.fine_tune * (len(data.train) // batch_size)
    rate = optax.linear_schedule(options.rate / batch_size, 0.0, num_updates)
    svi = SVI(model, lambda batch: None, optax.sgd(rate), ebm.UpDown())
    result = ebm.fit(
        jax.random.key(options.seed),
        svi,
        jnp.asarray(data.train),
        num_epochs=options.fine_tune,
        batch_size=batch_size,
        checkpoint=options.output / f"up_down_{options.rate:g}.safetensors",
        checkpoint_every=10,
        progress_bar=options.progress,
    )
    return result.params["dbn"], result.history["seconds"].iloc[-1]


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--epochs", type=int, nargs=2, default=[100, 15], help="of each layer")
    parser.add_argument("--published", action="store_true", help="their RBM as the first layer")
    parser.add_argument("--fine-tune", type=int, default=20, help="epochs of up-down; 0 for none")
    parser.add_argument("--rate", type=float, default=0.01, help="learning rate of up-down")
    parser.add_argument("--temperatures", type=int, default=14_500)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--progress", action="store_true", help="show progress bars")
    parser.add_argument("--output", type=Path, default=Path("build/deep_belief_network"))
    options = parser.parse_args()
    if "NUMPYRO_EBM_DATA" not in os.environ:
        print("deep_belief_network: set NUMPYRO_EBM_DATA to the folder of the data; skipped.")
        return
    options.output.mkdir(parents=True, exist_ok=True)
    data = ebm.datasets.load("mnist_fixed_binarized")

    def report(stage, dbn, seconds):
        began = time.perf_counter()
        bound = weigh(jax.random.key(options.seed + 1), dbn, data, options.temperatures)
        name = stage.replace(" ", "_")
        ebm.checkpoint.save(options.output / f"{name}.safetensors", dbn)
        found = bound.diagnostics
        print(
            f"{stage:8s} trained in {seconds:5.0f} s; test bound {bound.log_evidence:.2f} +- "
            f"{bound.std_error:.2f} nats (log Z {found['log_z']:.2f} +- "
            f"{found['log_z_std_error']:.2f}, draws +- {found['draws_std_error']:.3f}; "
            f"{time.perf_counter() - began:.0f} s)",
            flush=True,
        )

    for stage, dbn, seconds in train_layers(data, options):
        report(stage, dbn, seconds)
    if options.fine_tune:
        report("up-down", *fine_tune(dbn, data, options))
    print(f"published {PUBLISHED} (Salakhutdinov & Murray 2008)")


if __name__ == "__main__":
    main()
