"""Deep autoencoder and semantic hashing on MNIST, beside principal components.

    NUMPYRO_EBM_DATA=folder python benchmarks/autoencoder.py

A stack of RBMs (784-500-250, then a layer of 30 code units) is trained greedily on pixels drawn
from the gray levels, unrolled, and fine-tuned on the gray levels: once with real codes (Gaussian
units), once with bits (Bernoulli units with noise at their inputs). Reconstruction of the test
images is compared with principal components of equal code size: as many real numbers, or as many
bits (signs of the components, decoded by least squares). Retrieval of training images by test
images of the same label: precision and recall of Hamming balls of those bits.
"""

import argparse
import os
import time
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import optax
from numpyro.infer import SVI, Trace_ELBO

import numpyro_ebm as ebm
from numpyro_ebm.units import Gaussian

SIZES = 500, 250
BATCH_SIZE = 100
NOISE = 4.0


def load(num_rows):
    """Gray levels from 0 to 1 and labels, for training and testing."""
    path, parts = Path(os.environ["NUMPYRO_EBM_DATA"]) / "mnist_gray.npz", ("train", "test")
    with np.load(path) as data:
        images = [data[f"{part}_x"].reshape(-1, 784) / np.float32(255) for part in parts]
        labels = [data[f"{part}_y"].astype(np.int32) for part in parts]
    return images[0][:num_rows], labels[0][:num_rows], images[1], labels[1]


def add_layers(rng_key, rows, hidden, layers, rate, epochs):
    return ebm.fit_greedy(
        rng_key,
        rows,
        hidden,
        layers=layers,
        optim=optax.sgd(rate / BATCH_SIZE),
        num_epochs=epochs,
        batch_size=BATCH_SIZE,
        progress_bar=False,
    ).layers


def fine_tune(rng_key, start, rows, epochs):
    """The autoencoder after gradient descent on the cross-entropy of its reconstructions."""
    num_updates = epochs * (len(rows) // BATCH_SIZE)
    optim = optax.adam(optax.cosine_decay_schedule(1e-3, num_updates))
    svi = SVI(start.model, lambda batch: None, optim, Trace_ELBO())
    options = {"num_epochs": epochs, "batch_size": BATCH_SIZE, "progress_bar": False}
    return ebm.fit(rng_key, svi, rows, **options).params["autoencoder"]


class PrincipalComponents:
    """Projections on the leading eigenvectors of the covariance, and back."""

    def __init__(self, rows, num_components):
        self.mean = rows.mean(0)
        covariance = np.cov(rows, rowvar=False)
        self.axes = np.linalg.eigh(covariance)[1][:, ::-1][:, :num_components]
        bits = self.codes(rows) - np.float32(0.5)
        design = np.column_stack([bits, np.ones(len(rows))])
        self.from_bits = np.linalg.lstsq(design, rows, rcond=None)[0]

    def encode(self, rows):
        return (rows - self.mean) @ self.axes

    def reconstruct(self, rows):
        return self.encode(rows) @ self.axes.T + self.mean

    def codes(self, rows):
        return (self.encode(rows) > 0).astype(np.uint8)

    def decode(self, codes):
        return np.column_stack([codes - np.float32(0.5), np.ones(len(codes))]) @ self.from_bits


def squared_error(rows, found):
    """Mean over the images of the squared error summed over the pixels, and its error."""
    errors = ((rows - np.asarray(found)) ** 2).sum(1)
    return f"{errors.mean():6.2f} +- {errors.std() / len(errors) ** 0.5:.2f}"


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--bits", type=int, default=30, help="size of the code")
    parser.add_argument("--rows", type=int, default=20_000, help="training images")
    parser.add_argument("--epochs", type=int, default=5, help="of each machine")
    parser.add_argument("--fine-tune", type=int, default=20, help="epochs of each autoencoder")
    parser.add_argument("--queries", type=int, default=1000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--output", type=Path, default=Path("build/autoencoder"))
    options = parser.parse_args()
    if "NUMPYRO_EBM_DATA" not in os.environ:
        print("autoencoder: set NUMPYRO_EBM_DATA to the folder of the data; skipped.")
        return
    options.output.mkdir(parents=True, exist_ok=True)
    rows, labels, test, test_labels = load(options.rows)
    keys = jax.random.split(jax.random.key(options.seed), 5)
    began = time.perf_counter()

    def report(what):
        print(f"{time.perf_counter() - began:6.0f} s  {what}", flush=True)

    binary = jax.random.bernoulli(keys[0], rows).astype(jnp.uint8)
    stack = add_layers(keys[1], binary, SIZES, (), 0.05, options.epochs)
    report(f"{len(stack)} machines trained")
    codes = {"real codes": Gaussian(jnp.zeros(options.bits)), "bits": options.bits}
    noise = {"real codes": 0.0, "bits": NOISE}
    tuned = {}
    for name, units in codes.items():
        rate = 0.002 if name == "real codes" else 0.05
        layers = add_layers(keys[2], binary, [units], stack, rate, options.epochs)
        start = ebm.models.Autoencoder.unroll(layers, code_noise=noise[name])
        report(f"{name}: unrolled, squared error {squared_error(test, start.reconstruct(test))}")
        tuned[name] = fine_tune(keys[3], start, jnp.asarray(rows), options.fine_tune)
        ebm.checkpoint.save(options.output / f"{name.replace(' ', '_')}.safetensors", tuned[name])
        report(f"{name}: fine-tuned")

    components = PrincipalComponents(rows, options.bits)
    found = {
        "autoencoder, real codes": tuned["real codes"].reconstruct(test),
        "principal components": components.reconstruct(test),
        "autoencoder, bits": tuned["bits"].decode(tuned["bits"].codes(test)),
        "signs of principal components": components.decode(components.codes(test)),
    }
    print(f"\nsquared error of test images, codes of size {options.bits}")
    for name, images in found.items():
        print(f"  {name:30s} {squared_error(test, images)}")

    queries = slice(0, options.queries)
    curves = {
        name: ebm.retrieval.precision_recall(
            model.codes(test[queries]), test_labels[queries], model.codes(rows), labels
        )
        for name, model in (("semantic hashing", tuned["bits"]), ("signs of PCA", components))
    }
    print(f"\nretrieval from {len(rows)} images, {options.queries} queries")
    print("  codes               radius  precision  recall  retrieved")
    for name, curve in curves.items():
        for r in (0, 1, 2, 3, 4, 6, 8):
            print(
                f"  {name:20s} {r:5d} {curve.precision[r]:10.3f} {curve.recall[r]:7.3f} "
                f"{curve.num_retrieved[r]:10.1f}"
            )
    figure = ebm.plots.plot_precision_recall(curves)
    figure.savefig(options.output / "precision_recall.png", dpi=120)


if __name__ == "__main__":
    main()
