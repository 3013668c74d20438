"""How JAX compiles in the tests; it reads this when it starts.

Two host devices, so that `chain_method="parallel"` runs, and machine code that is not optimized:
most tests compile more than they compute.
"""

import os
from pathlib import Path

import pytest

FLAGS = "--xla_force_host_platform_device_count=2 --xla_backend_optimization_level=0"
os.environ["XLA_FLAGS"] = f"{os.environ.get('XLA_FLAGS', '')} {FLAGS}".strip()


@pytest.fixture(autouse=True, scope="module")
def _forget_compiled_programs():
    """Thousands of compiled programs in one process exhaust its memory maps."""
    yield
    import jax

    jax.clear_caches()


LONG = frozenset(Path(__file__).with_name("long_tests.txt").read_text().splitlines())
"""Single cases of tests that take long: they run with those marked slow."""


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items):
    """Mark long tests as slow."""
    for item in items:
        if item.nodeid.rpartition("/")[2] in LONG:
            item.add_marker(pytest.mark.slow)
