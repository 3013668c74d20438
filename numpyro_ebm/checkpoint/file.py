"""One file: a JSON header and arrays, whole or refused."""

from __future__ import annotations

import contextlib
import json
import os
import uuid
import zlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save as to_bytes

FORMAT = "numpyro_ebm.checkpoint"
VERSION = 2
"""Version of the format: 2 names the arrays of a distribution and tells its class."""


def write(path: str | os.PathLike[str], header: str, arrays: Mapping[str, np.ndarray]) -> None:
    """Write a file in place of what is there, all of it or nothing."""
    labels = {"format": FORMAT, "version": str(VERSION), "header": header}
    labels["checksum"] = str(_checksum(header, arrays))
    _replace(Path(path).resolve(), to_bytes(dict(arrays), labels))


def _checksum(header: str, arrays: Mapping[str, np.ndarray]) -> int:
    check = zlib.crc32(header.encode())
    for name in sorted(arrays):
        check = zlib.crc32(np.ravel(arrays[name]).view(np.uint8).data, check)
    return check


def _replace(path: Path, content: bytes) -> None:
    """Write a file beside the old one, and put it in its place once it is on disk."""
    temporary = path.with_name(f".{path.name}.{uuid.uuid4().hex}.tmp")
    try:
        with temporary.open("xb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except BaseException:
        with contextlib.suppress(OSError):
            temporary.unlink()
        raise
    if hasattr(os, "O_DIRECTORY"):  # the new name itself must reach the disk
        folder = os.open(path.parent, os.O_RDONLY | os.O_DIRECTORY)
        try:
            os.fsync(folder)
        finally:
            os.close(folder)


def read(path: str | os.PathLike[str]) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
    """Header and arrays of a file, once it is known to be whole."""
    try:
        with safe_open(os.fspath(path), framework="np") as file:
            labels = file.metadata() or {}
            if labels.get("format") != FORMAT:
                raise ValueError(
                    f"checkpoint: expected a file written by checkpoint.save; `{path}` is a "
                    "safetensors file of another kind."
                )
            arrays = {name: np.asarray(file.get_tensor(name)) for name in file.keys()}
    except SafetensorError as error:
        raise ValueError(
            f"checkpoint: expected a file written by checkpoint.save; `{path}` is truncated or "
            f"another kind of file ({error})."
        ) from error
    if labels["version"] != str(VERSION):
        raise ValueError(
            f"checkpoint: expected format version {VERSION}; `{path}` has {labels['version']}. "
            "Read it with the version of numpyro_ebm that wrote it."
        )
    if str(_checksum(labels["header"], arrays)) != labels["checksum"]:
        raise ValueError(f"checkpoint: `{path}` is damaged: its checksum does not match.")
    return json.loads(labels["header"]), arrays
