"""Checkpoints: the same bits back, nothing half-written, and clear refusals."""

import os
import subprocess
import sys
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from loss_models import DATA, PCD, no_guide, with_chains
from numpyro.infer import SVI
from safetensors.numpy import save_file

from numpyro_ebm import checkpoint


class Pair(NamedTuple):
    first: object
    second: object


def bits(leaf):
    """What a leaf is, down to the bits."""
    if leaf is None or type(leaf) in (bool, int, str):
        return leaf
    if isinstance(leaf, float):
        return leaf.hex()
    if jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key):
        data = np.asarray(jax.random.key_data(leaf))
        return "key", str(jax.random.key_impl(leaf)), data.shape, data.tobytes()
    return type(leaf).__name__, str(leaf.dtype), leaf.shape, np.asarray(leaf).tobytes()


def assert_same_bits(a, b):
    def is_none(x):
        return x is None

    assert jax.tree.structure(a, is_leaf=is_none) == jax.tree.structure(b, is_leaf=is_none)
    for x, y in zip(*(jax.tree.leaves(t, is_leaf=is_none) for t in (a, b)), strict=True):
        assert bits(x) == bits(y)


SPECIAL = np.array([np.nan, -0.0, np.inf, 5e-324, 1 / 3])
TREES = {
    "numbers": {"int": 2**70, "float": 0.1, "nan": float("nan"), "bool": True, "none": None},
    "text": Pair("text", [None, ()]),
    "floats": [SPECIAL, SPECIAL.astype(np.float32), SPECIAL.astype(np.float16)],
    "numpy scalars": [np.float64(0.1), np.int8(-3), np.bool_(True)],
    "jax": [jnp.float32(0.1), jnp.arange(5, dtype=jnp.uint8), jnp.array([True, False])],
    "bfloat16": [jnp.linspace(0, 1, 7, dtype=jnp.bfloat16), jnp.zeros((0, 3), jnp.bfloat16)],
    "empty": {"array": np.zeros((3, 0)), "tree": {}},
    "complex": np.array([1 + 2j, np.nan]),
    "strided": np.arange(12.0).reshape(3, 4).T,
    "big endian": np.arange(3, dtype=">f4").astype("f4"),
    "keys": [jax.random.key(3), jax.random.split(jax.random.key(1, impl="rbg"), 2)],
    "raw key": jax.random.PRNGKey(3),
    "one leaf": jnp.ones(3),
    "nested": {"a": [{"b": (jnp.ones(2), {"[0]": 1})}], "['a']": 2, "0": 3},
}


@pytest.mark.parametrize("tree", TREES.values(), ids=TREES)
def test_the_same_bits_come_back(tree, tmp_path):
    path = tmp_path / "tree.safetensors"
    checkpoint.save(path, tree)
    assert_same_bits(checkpoint.load(path, tree), tree)
    assert [p.name for p in tmp_path.iterdir()] == [path.name]


@pytest.mark.slow
def test_the_state_of_svi_with_chains_and_optimizer(tmp_path):
    svi = SVI(with_chains, no_guide, optax.adam(0.1), PCD)
    start = svi.init(jax.random.key(0), DATA)
    update = jax.jit(svi.update)
    state, _ = update(start, DATA)
    checkpoint.save(tmp_path / "state", state, metadata={"epoch": 3})
    restored = checkpoint.load(tmp_path / "state", start)
    assert_same_bits(restored, state)
    assert checkpoint.load_metadata(tmp_path / "state") == {"epoch": 3}
    assert_same_bits(update(restored, DATA), update(state, DATA))


def test_shapes_and_types_are_enough(tmp_path):
    tree = {"x": jnp.ones((2, 3), jnp.bfloat16), "key": jax.random.key(1)}
    checkpoint.save(tmp_path / "tree", tree)
    assert_same_bits(checkpoint.load(tmp_path / "tree", jax.eval_shape(lambda: tree)), tree)


def test_sharding_is_that_of_the_example(tmp_path):
    mesh = jax.make_mesh((2,), ("rows",), (jax.sharding.AxisType.Auto,))
    sharding = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec("rows"))
    tree = jax.device_put(jnp.arange(8.0), sharding)
    checkpoint.save(tmp_path / "tree", tree)
    assert checkpoint.load(tmp_path / "tree", tree).sharding == sharding


LIKE = {"a": jnp.ones(3), "b": jnp.zeros(2, jnp.int32), "key": jax.random.key(0), "n": 1}


@pytest.mark.parametrize(
    ("other", "message"),
    [
        (LIKE | {"c": 1}, r"missing in the file: `\['c'\]`"),
        ({"a": LIKE["a"]}, r"only in the file: `\['b'\]`; only in the file: `\['key'\]`"),
        (LIKE | {"a": jnp.ones(4)}, r"`\['a'\]` has shape \[3\] in the file and \[4\]"),
        (LIKE | {"b": jnp.zeros(2)}, r"`\['b'\]` has dtype int32 in the file and float32"),
        (LIKE | {"key": jax.random.key(0, impl="rbg")}, "impl threefry2x32 in the file and rbg"),
        (LIKE | {"key": jax.random.PRNGKey(0)}, "is key in the file and array in `like`"),
        (LIKE | {"n": 1.0}, r"`\['n'\]` is int in the file and float in `like`"),
        (LIKE | {"n": None}, "is int in the file and NoneType in `like`"),
        ({str(i): 0 for i in range(20)}, "and 16 more"),
    ],
)
def test_another_tree_is_refused(other, message, tmp_path):
    checkpoint.save(tmp_path / "tree", LIKE)
    with pytest.raises(ValueError, match=message):
        checkpoint.load(tmp_path / "tree", other)


@pytest.mark.parametrize("share", [0.0, 0.01, 0.5, 0.999])
def test_truncated_files_are_refused(share, tmp_path):
    path = tmp_path / "tree"
    checkpoint.save(path, LIKE)
    content = path.read_bytes()
    path.write_bytes(content[: int(share * len(content))])
    with pytest.raises(ValueError, match="truncated or another kind of file"):
        checkpoint.load(path, LIKE)


def test_damaged_and_foreign_files_are_refused(tmp_path):
    path = tmp_path / "tree"
    checkpoint.save(path, LIKE)
    content = bytearray(path.read_bytes())
    content[-2] ^= 1
    path.write_bytes(content)
    with pytest.raises(ValueError, match="damaged: its checksum"):
        checkpoint.load(path, LIKE)
    save_file({"a": np.ones(3)}, path)
    with pytest.raises(ValueError, match="safetensors file of another kind"):
        checkpoint.load(path, LIKE)
    path.write_text("hello")
    with pytest.raises(ValueError, match="truncated or another kind of file"):
        checkpoint.load_metadata(path)
    with pytest.raises(FileNotFoundError):
        checkpoint.load(tmp_path / "none", LIKE)


def test_other_versions_are_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(checkpoint.file, "VERSION", 3)
    checkpoint.save(tmp_path / "tree", LIKE)
    monkeypatch.undo()
    with pytest.raises(ValueError, match="format version 2; .* has 3"):
        checkpoint.load(tmp_path / "tree", LIKE)


def test_leaves_that_cannot_be_stored_are_named(tmp_path):
    with pytest.raises(TypeError, match=r"function at `\['f'\]`"):
        checkpoint.save(tmp_path / "tree", {"f": bits})
    with pytest.raises(TypeError, match=r"ndarray at `\['x'\]`"):
        checkpoint.save(tmp_path / "tree", {"x": np.array([None])})
    with pytest.raises(TypeError, match="`metadata` of what JSON has"):
        checkpoint.save(tmp_path / "tree", 1, metadata={"x": bits})
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("function", ["fsync", "replace"])
def test_a_failure_leaves_the_old_file(function, tmp_path, monkeypatch):
    path = tmp_path / "tree"
    checkpoint.save(path, LIKE)

    def fail(*args):
        raise OSError("disk full")

    monkeypatch.setattr(os, function, fail)
    with pytest.raises(OSError, match="disk full"):
        checkpoint.save(path, LIKE | {"n": 2})
    monkeypatch.undo()
    assert_same_bits(checkpoint.load(path, LIKE), LIKE)
    assert [p.name for p in tmp_path.iterdir()] == [path.name]


def test_contents_reach_the_disk_before_the_name(tmp_path, monkeypatch):
    events = []
    replace, fsync = os.replace, os.fsync
    monkeypatch.setattr(os, "replace", lambda *args: (events.append("name"), replace(*args)))
    monkeypatch.setattr(os, "fsync", lambda handle: (events.append("flush"), fsync(handle)))
    checkpoint.save(tmp_path / "tree", LIKE)
    assert events == ["flush", "name", "flush"]


WRITER = """
import sys, numpy as np
from numpyro_ebm import checkpoint
i = 0
while True:
    checkpoint.save(sys.argv[1], {"x": np.full(2_000_000, i)})
    print(i, flush=True)
    i += 1
"""


@pytest.mark.slow
def test_a_killed_writer_leaves_a_whole_file(tmp_path):
    path, rng = tmp_path / "tree", np.random.default_rng(0)
    like = {"x": np.zeros(2_000_000, int)}
    for _ in range(3):
        command = [sys.executable, "-c", WRITER, str(path)]
        with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
            for _ in range(rng.integers(2, 6)):
                process.stdout.readline()
            try:
                process.wait(rng.uniform(0, 0.1))
            except subprocess.TimeoutExpired:
                process.kill()
        values = checkpoint.load(path, like)["x"]
        assert np.all(values == values[0])
