"""Films of balls that bounce in a box."""

import numpy as np
from jaxtyping import Float, UInt8


def bouncing_balls(
    num_sequences: int,
    num_frames: int,
    *,
    size: int = 10,
    num_balls: int = 1,
    radius: float = 1.5,
    speed: float = 1.0,
    seed: int = 0,
) -> UInt8[np.ndarray, "num_sequences num_frames num_pixels"]:
    """Film balls that move straight on and bounce off the walls, and each other, elastically.

    A ball starts at a random place in a random direction. A pixel of a frame is on where its
    centre lies in a ball.

    Args:
        num_sequences: Number of films.
        num_frames: Frames of each.
        size: Side of the box, in pixels.
        num_balls: Balls in the box, of equal mass.
        radius: Their radius, in pixels.
        speed: Pixels that a ball moves on from frame to frame, at the start.
        seed: Seed of the starts.

    Returns:
        Binary frames of ``size ** 2`` pixels, row by row.

    Raises:
        ValueError: A number is not positive, or the balls do not fit into the box.

    Example:
        >>> films = bouncing_balls(3, 20, size=8)
        >>> films.shape, films.dtype.name
        ((3, 20, 64), 'uint8')

    References:
        I. Sutskever, G. E. Hinton and G. W. Taylor (2008), "The Recurrent Temporal Restricted
        Boltzmann Machine", section 5 (films of three balls).
    """
    counts = {"num_sequences": num_sequences, "num_frames": num_frames, "size": size}
    for name, count in {**counts, "num_balls": num_balls}.items():
        if not isinstance(count, int | np.integer) or count < 1:
            raise ValueError(
                f"bouncing_balls: expected a positive integer `{name}`; got {count!r}."
            )
    for name, number in {"radius": radius, "speed": speed}.items():
        if not number > 0:
            raise ValueError(f"bouncing_balls: expected a positive `{name}`; got {number!r}.")
    if 4 * num_balls * (2 * radius) ** 2 > size**2:
        raise ValueError(
            f"bouncing_balls: expected balls that fill at most a quarter of the box; got "
            f"{num_balls} of radius {radius:g} in a box of side {size}."
        )
    rng = np.random.default_rng(seed)
    place = _starts(rng, num_sequences, num_balls, size, radius)
    angle = rng.uniform(0, 2 * np.pi, (num_sequences, num_balls))
    velocity = speed * np.stack([np.cos(angle), np.sin(angle)], axis=-1)
    grid = np.stack(np.meshgrid(np.arange(size), np.arange(size), indexing="ij"), axis=-1) + 0.5
    films = np.empty((num_sequences, num_frames, size**2), np.uint8)
    for t in range(num_frames):
        distance = np.linalg.norm(grid[:, :, None] - place[:, None, None], axis=-1)
        films[:, t] = (distance < radius).any(-1).reshape(num_sequences, -1)
        place, velocity = _moved(place, velocity, size, radius)
    return films


def _starts(
    rng: np.random.Generator, num_sequences: int, num_balls: int, size: int, radius: float
) -> Float[np.ndarray, "num_sequences num_balls 2"]:
    """Random places in the box at which no balls overlap."""
    place = rng.uniform(radius, size - radius, (num_sequences, num_balls, 2))
    while (bad := _touching(place, radius).any((-2, -1))).any():
        place[bad] = rng.uniform(radius, size - radius, (bad.sum(), num_balls, 2))
    return place


def _touching(place: np.ndarray, radius: float) -> np.ndarray:
    """Which pairs of balls overlap."""
    distance = np.linalg.norm(place[..., :, None, :] - place[..., None, :, :], axis=-1)
    return (distance < 2 * radius) & ~np.eye(place.shape[-2], dtype=bool)


def _moved(
    place: np.ndarray, velocity: np.ndarray, size: int, radius: float
) -> tuple[np.ndarray, np.ndarray]:
    """Move on by a frame in small steps; balls that meet exchange what they have along the line."""
    num_steps = max(1, int(np.ceil(np.abs(velocity).max() / 0.1)))
    for _ in range(num_steps):
        place = place + velocity / num_steps
        out = (place < radius) & (velocity < 0) | (place > size - radius) & (velocity > 0)
        velocity = np.where(out, -velocity, velocity)
        for i in range(place.shape[1]):
            for j in range(i):
                velocity = _collided(place, velocity, i, j, radius)
    return place, velocity


def _collided(place: np.ndarray, velocity: np.ndarray, i: int, j: int, radius: float) -> np.ndarray:
    apart = place[:, i] - place[:, j]
    distance = np.linalg.norm(apart, axis=-1, keepdims=True)
    line = apart / np.maximum(distance, 1e-12)
    closing = ((velocity[:, i] - velocity[:, j]) * line).sum(-1, keepdims=True)
    exchange = np.where((distance < 2 * radius) & (closing < 0), closing, 0) * line
    velocity = velocity.copy()
    velocity[:, i] -= exchange
    velocity[:, j] += exchange
    return velocity
