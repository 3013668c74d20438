"""The container of a data set, and the likelihood every model of it should beat."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

import numpy as np
from jaxtyping import Integer, Shaped

ImageOrder = Literal["C", "F"]


@dataclass(frozen=True, eq=False)
class Dataset:
    """Examples split for training, validation and test; one row per example.

    A split the source does not have is an empty array, of shape (0, num_visible).

    Args:
        name: Name of the set.
        train: Training examples, uint8 unless the description says otherwise.
        valid: Validation examples.
        test: Test examples.
        train_y: Integer labels of `train`, or None where the source has none.
        valid_y: Integer labels of `valid`, or None.
        test_y: Integer labels of `test`, or None.
        image_shape: (height, width) where a row is an image, else None.
        image_order: "C" if the pixels of an image are stored row by row, "F" column by column.
        description: What the examples are and where they come from.
        extras: Whatever else the source holds (names of classes, an alphabet), by its name there.

    Example:
        >>> rows = np.eye(6, dtype=np.uint8)
        >>> data = Dataset("one pixel on", rows[:4], rows[4:5], rows[5:], image_shape=(2, 3))
        >>> data.images(data.train).shape
        (4, 2, 3)
    """

    name: str
    train: Shaped[np.ndarray, "num_train num_visible"]
    valid: Shaped[np.ndarray, "num_valid num_visible"]
    test: Shaped[np.ndarray, "num_test num_visible"]
    train_y: Integer[np.ndarray, " num_train"] | None = None
    valid_y: Integer[np.ndarray, " num_valid"] | None = None
    test_y: Integer[np.ndarray, " num_test"] | None = None
    image_shape: tuple[int, int] | None = None
    image_order: ImageOrder = "C"
    description: str = ""
    extras: Mapping[str, np.ndarray] = field(default_factory=dict)

    def images(
        self, rows: Shaped[np.ndarray, "*batch num_visible"]
    ) -> Shaped[np.ndarray, "*batch height width"]:
        """Reshape rows of this set, or samples of a model of it, to images the right way up.

        Raises:
            ValueError: If the set has no `image_shape`, or a row is not an image long.
        """
        rows = np.asarray(rows)
        if self.image_shape is None:
            raise ValueError(f"Dataset.images: the rows of {self.name!r} are not images.")
        height, width = self.image_shape
        if rows.shape[-1:] != (height * width,):
            raise ValueError(
                f"Dataset.images: expected rows of {height * width} pixels for images of shape "
                f"{self.image_shape}; got an array of shape {rows.shape}."
            )
        if self.image_order == "F":
            return rows.reshape(*rows.shape[:-1], width, height).swapaxes(-1, -2)
        return rows.reshape(*rows.shape[:-1], height, width)


def independent_bernoulli_log_likelihood(
    train: Shaped[np.ndarray, "num_train num_visible"],
    test: Shaped[np.ndarray, "num_test num_visible"],
) -> float:
    """Mean test log-likelihood of the independent-Bernoulli model of the training data, in nats.

    Each variable is on with probability (count + 1/2) / (num_train + 1), its frequency in `train`
    with half an example of either value added. A model that has learnt any dependence between the
    variables does better, which makes this the floor to compare with.

    Args:
        train: Training examples in {0, 1}.
        test: Test examples in {0, 1}.

    Returns:
        The mean over `test` of log p(x), in nats per example.

    Raises:
        ValueError: If an argument is not a non-empty matrix of zeros and ones, or their widths
            differ.

    Example:
        >>> train = np.array([[0, 1], [1, 1], [0, 1]])
        >>> test = np.array([[0, 1]])
        >>> round(independent_bernoulli_log_likelihood(train, test), 6)  # log(5/8) + log(7/8)
        -0.603535
    """
    for name, rows in (("train", train), ("test", test)):
        if np.ndim(rows) != 2 or np.size(rows) == 0 or not np.isin(rows, (0, 1)).all():
            raise ValueError(
                "independent_bernoulli_log_likelihood: expected a non-empty matrix of zeros and "
                f"ones for `{name}`; got shape {np.shape(rows)}, dtype {np.asarray(rows).dtype}."
            )
    if np.shape(train)[1] != np.shape(test)[1]:
        raise ValueError(
            "independent_bernoulli_log_likelihood: expected `test` rows of "
            f"{np.shape(train)[1]} variables to match `train`; got {np.shape(test)[1]}."
        )
    on = (np.sum(train, axis=0, dtype=np.float64) + 0.5) / (len(train) + 1)
    frequency = np.mean(test, axis=0, dtype=np.float64)
    return float(np.sum(frequency * np.log(on) + (1 - frequency) * np.log1p(-on)))
