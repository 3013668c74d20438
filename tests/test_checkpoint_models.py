"""Every model of the package comes back from a file, and no other is taken for it."""

import json
import os
import subprocess
import sys
from functools import cache
from importlib.metadata import version
from itertools import pairwise

import jax
import jax.numpy as jnp
import numpy as np
import numpyro.distributions as dist
import pytest
from checkpoint_models import FROM_CODE, MODELS
from safetensors import safe_open
from test_checkpoint import assert_same_bits

from numpyro_ebm import MADE, NADE, RBM, BoltzmannMachine, Ising, checkpoint, models, units

EVERY = pytest.mark.parametrize("name", MODELS)
model = cache(lambda name: MODELS[name]())


@EVERY
def test_a_model_comes_back_from_the_file(name, tmp_path):
    path = tmp_path / "model.safetensors"
    checkpoint.save(path, model(name))
    if name in FROM_CODE:
        with pytest.raises(ValueError, match="expected `like`, since `checkpoint_models._quartic`"):
            checkpoint.load(path)
        return
    found = checkpoint.load(path)
    assert type(found) is type(model(name))
    assert_same_bits(found, model(name))


@pytest.mark.parametrize("name", ["RBM Gaussian-Bernoulli", "Ising, lattice", "NADE", "MADE"])
def test_what_comes_back_works(name, tmp_path):
    path = tmp_path / "model.safetensors"
    checkpoint.save(path, model(name))
    ones = jnp.ones(model(name).event_shape, int)
    expected, found = (jax.jit(log_density)(m, ones) for m in (model(name), checkpoint.load(path)))
    np.testing.assert_array_equal(found, expected)


def log_density(found, value):
    return found.energy(value) if hasattr(found, "energy") else found.log_prob(value)


@EVERY
def test_a_model_comes_back_in_the_place_of_another(name, tmp_path):
    path = tmp_path / "model.safetensors"
    checkpoint.save(path, model(name))
    like = jax.tree.map(lambda leaf: leaf * 0, model(name))
    assert_same_bits(checkpoint.load(path, like), model(name))


@pytest.mark.parametrize(("name", "other"), [*pairwise(MODELS)])
def test_a_file_of_another_class_is_refused(name, other, tmp_path):
    path = tmp_path / "model.safetensors"
    checkpoint.save(path, model(name))
    with pytest.raises(ValueError, match="to hold a tree like `like`; it differs: "):
        checkpoint.load(path, model(other))


def _ising(periodic=False):
    return Ising.lattice((3, 4), 0.4, 0.1, periodic=periodic)


def _made(seed):
    degrees = MADE.Degrees.random(seed, 3, [4, 5])
    return MADE(**MADE.init_params(jax.random.key(1), 3, [4, 5]), degrees=degrees)


SAME_ARRAYS = {
    "class": (
        lambda: BoltzmannMachine(jnp.zeros((3, 3)), jnp.zeros(3)),
        lambda: dist.MultivariateNormal(jnp.zeros(3), jnp.eye(3)),
        "the tree is numpyro_ebm.BoltzmannMachine in the file and numpyro.MultivariateNormal in",
    ),
    "part": (
        lambda: {"a": RBM(jnp.ones((3, 2)), jnp.zeros(3), jnp.zeros(2))},
        lambda: {"a": RBM(jnp.ones((3, 2)), units.Spin(jnp.zeros(3)), jnp.zeros(2))},
        "`visible_units` of `a` of the tree is numpyro_ebm.Bernoulli in the file and "
        "numpyro_ebm.Spin in `like`",
    ),
    "order of the units": (lambda: _made(1), lambda: _made(2), "has another `degrees`"),
    "graph": (_ising, lambda: _ising(True), "Lattice. has another `periodic`"),
    "hidden units": (
        lambda: BoltzmannMachine(jnp.zeros((3, 3)), jnp.zeros(3), num_visible=2),
        lambda: BoltzmannMachine(jnp.zeros((3, 3)), jnp.zeros(3)),
        "has another `num_visible`: 2 and None",
    ),
    "no model": (lambda: {"a": _made(1)}, lambda: {"a": jnp.ones(3)}, "numpyro_ebm.MADE in the"),
    "sizes": (
        lambda: models.SigmoidBeliefNetwork(3, [2]),
        lambda: models.SigmoidBeliefNetwork(3, [3]),
        "SigmoidBeliefNetwork. has another `self`",
    ),
}


@pytest.mark.parametrize(("build", "other", "message"), SAME_ARRAYS.values(), ids=SAME_ARRAYS)
def test_what_differs_is_named(build, other, message, tmp_path):
    path = tmp_path / "model.safetensors"
    checkpoint.save(path, build())
    with pytest.raises(ValueError, match=message):
        checkpoint.load(path, other())


SAVE_ALL = """
import sys
from checkpoint_models import MODELS
from numpyro_ebm import checkpoint

for number, name in enumerate(MODELS):
    checkpoint.save(f"{sys.argv[1]}/{number}.safetensors", MODELS[name]())
"""


@pytest.mark.slow
def test_models_come_back_in_another_process(tmp_path):
    """Names have another order there."""
    environment = {**os.environ, "PYTHONHASHSEED": "1", "PYTHONPATH": os.pathsep.join(sys.path)}
    subprocess.run([sys.executable, "-c", SAVE_ALL, str(tmp_path)], check=True, env=environment)
    for number, name in enumerate(MODELS):
        found = checkpoint.load(tmp_path / f"{number}.safetensors", model(name))
        assert_same_bits(found, model(name))
        if name not in FROM_CODE:
            assert_same_bits(checkpoint.load(tmp_path / f"{number}.safetensors"), model(name))


def test_a_file_of_another_version_is_refused(tmp_path, monkeypatch):
    path = tmp_path / "model.safetensors"
    checkpoint.save(path, model("NADE"))
    fields = {*NADE.pytree_data_fields, "context"}
    monkeypatch.setattr(NADE, "gather_pytree_data_fields", classmethod(lambda cls: tuple(fields)))
    with pytest.raises(ValueError, match="of another version, has"):
        checkpoint.load(path)
    monkeypatch.undo()
    monkeypatch.setattr(checkpoint.static, "class_name", lambda cls: f"elsewhere.{cls.__name__}")
    with pytest.raises(
        ValueError, match="no class of that name in what is imported of `numpyro_ebm"
    ):
        checkpoint.load(path)
    monkeypatch.undo()
    monkeypatch.setattr(checkpoint.file, "VERSION", 1)
    with pytest.raises(ValueError, match="format version 1; .* has 2"):
        checkpoint.load(path)


def test_arrays_are_named_and_headers_are_json(tmp_path):
    path = tmp_path / "model.safetensors"
    checkpoint.save(path, model("NADE"))
    with safe_open(path, framework="np") as file:
        header = json.loads(file.metadata()["header"])
        names = set(NADE.pytree_data_fields) - {"order"}  # it has none
        assert set(file.keys()) == {f"['{name}']" for name in names}
    assert header["structure"]["class"] == "numpyro_ebm.NADE"
    assert header["numpyro_ebm"] == version("numpyro_ebm")
    assert header["leaves"]["['bias']"]["shape"] == [3]


def test_a_file_runs_no_code(tmp_path):
    """What a header names is built only where it is a model or a plain part of one."""
    path = tmp_path / "model.safetensors"
    for entry in (
        {"class": "subprocess.Popen", "fields": {}, "static": {}},
        {"class": "x", "fields": {}, "static": {"self": {"dataclass": ["subprocess.Popen", {}]}}},
        {
            "class": "x",
            "fields": {},
            "static": {"self": {"constraint": ["os.PathLike", [], [], {}]}},
        },
    ):
        header = json.dumps({"structure": entry, "leaves": {}, "metadata": {}})
        checkpoint.file.write(path, header, {})
        with pytest.raises(ValueError, match="expected"):
            checkpoint.load(path)
