import hashlib
import os
import sys

import numpy as np
import pytest

from numpyro_ebm import datasets

# Examples for training, validation and test; variables; test nats of independent Bernoullis.
SETS = {
    "binary_alphadigits": (1404, 0, 0, 320, None),
    "caltech101_silhouettes_28": (4100, 2264, 2307, 784, -380.06),
    "debd_accidents": (12758, 1700, 2551, 111, -45.56),
    "debd_baudio": (15000, 2000, 3000, 100, -49.34),
    "debd_bbc": (1670, 225, 330, 1058, -277.11),
    "debd_bnetflix": (15000, 2000, 3000, 100, -64.56),
    "debd_dna": (1600, 400, 1186, 180, -100.39),
    "debd_jester": (9000, 1000, 4116, 100, -63.88),
    "debd_nltcs": (16181, 2157, 3236, 16, -9.234),
    "debd_plants": (17412, 2321, 3482, 69, -31.27),
    "debd_pumsb_star": (12262, 1635, 2452, 163, -75.86),
    "mnist_fixed_binarized": (50000, 10000, 10000, 784, -205.79),
    "mnist_gray": (60000, 0, 10000, 784, None),
    "nade_adult": (5000, 1414, 26147, 123, -25.77),
    "nade_dna": (1400, 600, 1186, 180, -100.39),
    "nade_mushrooms": (2000, 500, 5624, 112, -34.23),
    "nade_nips": (400, 100, 1240, 500, -294.81),
    "rna_RF00379": (3827, 0, 0, 136, None),
}
needs_data = pytest.mark.skipif(
    "NUMPYRO_EBM_DATA" not in os.environ, reason="NUMPYRO_EBM_DATA is not set"
)


@pytest.fixture
def folder(tmp_path):
    """A directory with a packed set of two splits, a plain file and an RBM."""
    rows = np.random.default_rng(0).integers(0, 2, (7, 11), dtype=np.uint8)
    packed = np.packbits(rows, axis=1)
    splits = {"train": packed[:5], "train_n": 5, "test": packed[5:], "test_n": 2, "width": 11}
    labels = np.arange(5, dtype=np.uint8)
    np.savez(tmp_path / "tiny.npz", **splits, train_y=labels, letters=np.array(["a", "b"]))
    np.savez(tmp_path / "plain.npz", y=np.arange(3), x=np.ones(3))
    np.savez(tmp_path / "rbm_small.npz", W=np.ones((4, 2), "f4"), b_vis=np.ones(4), b_hid=[1, 2])
    return tmp_path, rows


def test_digits_split_is_fixed_stratified_and_complete():
    digits = datasets.load_digits()
    parts = [digits.train, digits.valid, digits.test]
    assert [part.shape for part in parts] == [(1257, 64), (270, 64), (270, 64)]
    assert all(part.dtype == np.uint8 and set(np.unique(part)) == {0, 1} for part in parts)
    for labels in (digits.train_y, digits.valid_y, digits.test_y):
        share = np.bincount(labels) / len(labels)
        np.testing.assert_allclose(share, np.full(10, 0.1), atol=0.006)
    everything = np.concatenate(parts)
    assert hashlib.sha256(everything.tobytes()).hexdigest()[:16] == "67a7d7ade76b1a96"


def test_digits_hold_every_image_once():
    from sklearn.datasets import load_digits

    pixels, labels = load_digits(return_X_y=True)
    digits = datasets.load_digits(threshold=5, seed=3)
    ours = np.column_stack(
        [
            np.concatenate([digits.train, digits.valid, digits.test]),
            np.concatenate([digits.train_y, digits.valid_y, digits.test_y]),
        ]
    )
    theirs = np.column_stack([pixels >= 5, labels])
    np.testing.assert_array_equal(ours[np.lexsort(ours.T)], theirs[np.lexsort(theirs.T)])


def test_digits_seed_changes_the_split_only():
    first, second = datasets.load_digits(), datasets.load_digits(seed=1)
    assert not np.array_equal(first.train, second.train)
    again = datasets.load_digits()
    np.testing.assert_array_equal(first.test, again.test)


@pytest.mark.parametrize("threshold", [0, 16, 20.0, -1, float("nan")])
def test_digits_reject_a_threshold_outside_the_range(threshold):
    message = rf"load_digits: expected `threshold` in \(0, 16\); got {threshold}\."
    with pytest.raises(ValueError, match=message):
        datasets.load_digits(threshold=threshold)


def test_digits_without_scikit_learn_name_the_extra(monkeypatch):
    monkeypatch.setitem(sys.modules, "sklearn", None)
    with pytest.raises(ImportError, match=r"numpyro-ebm\[examples\]"):
        datasets.load_digits()


@pytest.mark.parametrize("size", [1, 2, 3, 4])
def test_bars_and_stripes_are_exactly_the_defined_patterns(size):
    patterns = datasets.bars_and_stripes(size)
    codes = np.arange(2 ** (size * size))[:, None]
    grids = ((codes >> np.arange(size * size)) & 1).reshape(-1, size, size)
    in_rows = (grids == grids[:, :, :1]).all((1, 2))
    in_columns = (grids == grids[:, :1, :]).all((1, 2))
    expected = {grid.tobytes() for grid in grids[in_rows | in_columns].astype(np.uint8)}
    assert patterns.dtype == np.uint8
    assert len(patterns) == 2 ** (size + 1) - 2 == len(expected)
    assert {pattern.tobytes() for pattern in patterns} == expected


@pytest.mark.parametrize("size", [0, -1, 17, 2.0, "3"])
def test_bars_and_stripes_reject_an_impossible_size(size):
    with pytest.raises(ValueError, match=r"expected an integer `size` in 1\.\.16"):
        datasets.bars_and_stripes(size)


def test_load_unpacks_a_binary_set(folder):
    path, rows = folder
    data = datasets.load("tiny", path)
    np.testing.assert_array_equal(data.train, rows[:5])
    np.testing.assert_array_equal(data.test, rows[5:])
    assert data.valid.shape == (0, 11)
    assert data.train.dtype == data.valid.dtype == np.uint8
    np.testing.assert_array_equal(data.train_y, np.arange(5))
    assert data.test_y is None
    assert list(data.extras) == ["letters"]


def test_names_come_from_the_environment(folder, monkeypatch):
    path, rows = folder
    monkeypatch.setenv("NUMPYRO_EBM_DATA", str(path))
    assert datasets.available() == ["plain", "rbm_small", "tiny"]
    np.testing.assert_array_equal(datasets.load("tiny").train, rows[:5])
    assert set(datasets.load_arrays("plain")) == {"x", "y"}


def test_load_rbm_returns_double_precision_parameters(folder):
    rbm = datasets.load_rbm("rbm_small", folder[0])
    shapes = {key: value.shape for key, value in rbm.items()}
    assert shapes == {"weights": (4, 2), "visible": (4,), "hidden": (2,)}
    assert all(value.dtype == np.float64 for value in rbm.values())


def test_salakhutdinov_murray_notice_is_displayed():
    notice = " ".join(datasets.load_rbm.__doc__.split())
    assert "Code provided by Ruslan Salakhutdinov. Permission is granted for anyone" in notice
    assert "without any warranty, express or implied" in notice
    assert "original programs are available from the web page" in notice


def test_wrong_kind_of_file_names_the_right_reader(folder):
    with pytest.raises(ValueError, match=r"'plain' is not a set of examples.*`load_arrays`"):
        datasets.load("plain", folder[0])
    with pytest.raises(ValueError, match=r"'rbm_small' is not a set of examples.*`load_rbm`"):
        datasets.load("rbm_small", folder[0])
    with pytest.raises(ValueError, match="expected arrays W, b_vis and b_hid in tiny"):
        datasets.load_rbm("tiny", folder[0])


def test_damaged_file_is_refused(folder):
    packed = np.zeros((3, 1), np.uint8)
    np.savez(folder[0] / "short.npz", train=packed, train_n=4, width=8)
    with pytest.raises(ValueError, match="short.npz is damaged: 4 rows of 8 bits"):
        datasets.load("short", folder[0])


@pytest.mark.parametrize(
    "reader", [datasets.load, datasets.load_arrays, datasets.load_rbm, datasets.available]
)
def test_unset_variable_says_what_to_do(reader, monkeypatch):
    monkeypatch.delenv("NUMPYRO_EBM_DATA", raising=False)
    arguments = () if reader is datasets.available else ("debd_nltcs",)
    with pytest.raises(FileNotFoundError, match=r"NUMPYRO_EBM_DATA is not set; set.*debd_nltcs"):
        reader(*arguments)


def test_missing_file_and_directory_say_what_there_is(folder):
    with pytest.raises(FileNotFoundError, match=r"no tiney\.npz .* plain, rbm_small, tiny\."):
        datasets.load("tiney", folder[0])
    with pytest.raises(FileNotFoundError, match="is not a directory; set NUMPYRO_EBM_DATA"):
        datasets.load("tiny", folder[0] / "elsewhere")


def test_images_follow_the_stored_order():
    image = np.arange(6).reshape(2, 3)
    rows = np.stack([image.ravel("F")] * 2)[None]
    data = datasets.Dataset("f", rows[0], rows[0], rows[0], image_shape=(2, 3), image_order="F")
    np.testing.assert_array_equal(data.images(rows), np.broadcast_to(image, (1, 2, 2, 3)))
    with pytest.raises(ValueError, match=r"rows of 6 pixels.*\(2, 3\); got an array of shape \(5"):
        data.images(np.zeros(5))
    with pytest.raises(ValueError, match="rows of 'plain' are not images"):
        datasets.Dataset("plain", rows[0], rows[0], rows[0]).images(rows)


def test_floor_agrees_with_a_direct_computation():
    rng = np.random.default_rng(1)
    train, test = rng.integers(0, 2, (40, 6)), rng.integers(0, 2, (9, 6))
    p = (train.sum(0) + 0.5) / 41
    expected = np.log(np.where(test, p, 1 - p)).sum(1).mean()
    floor = datasets.independent_bernoulli_log_likelihood(train, test)
    np.testing.assert_allclose(floor, expected, rtol=1e-12)


def test_floor_rejects_what_is_not_binary_data():
    rows = np.ones((3, 2), np.uint8)
    floor = datasets.independent_bernoulli_log_likelihood
    for bad in (rows * 7, rows[:0], rows[0], rows * np.nan):
        with pytest.raises(ValueError, match="non-empty matrix of zeros and ones for `train`"):
            floor(bad, rows)
        with pytest.raises(ValueError, match="non-empty matrix of zeros and ones for `test`"):
            floor(rows, bad)
    with pytest.raises(ValueError, match="`test` rows of 2 variables to match `train`; got 1"):
        floor(rows, rows[:, :1])


@needs_data
@pytest.mark.parametrize("name", SETS)
def test_every_set_has_its_published_size_and_floor(name):
    data = datasets.load(name)
    *sizes, width, floor = SETS[name]
    assert [split.shape for split in (data.train, data.valid, data.test)] == [
        (size, width) for size in sizes
    ]
    assert data.train.dtype == np.uint8
    assert data.description
    if floor is not None:
        ours = datasets.independent_bernoulli_log_likelihood(data.train, data.test)
        assert abs(ours - floor) <= (0.0005 if name == "debd_nltcs" else 0.005) + 1e-9


@needs_data
def test_every_file_is_readable():
    names = datasets.available()
    assert set(SETS) <= set(names)
    assert all(datasets.load_arrays(name) for name in names)


@needs_data
def test_caltech_polarity_and_orientation_are_as_stored():
    data = datasets.load("caltech101_silhouettes_28")
    np.testing.assert_allclose(data.train.mean(), 0.551, atol=0.01)  # 1 is the background
    images = data.images(data.train)
    np.testing.assert_array_equal(images[5], data.train[5].reshape(28, 28).T)
    assert (data.train_y.min(), data.train_y.max()) == (1, 101)


@needs_data
def test_published_rbms():
    for hidden, name in ((500, "cd25_500"), (15, "toy_15")):
        rbm = datasets.load_rbm(f"rbm_salakhutdinov_murray_{name}")
        shapes = {key: value.shape for key, value in rbm.items()}
        assert shapes == {"weights": (784, hidden), "visible": (784,), "hidden": (hidden,)}
