"""What each part of the package may import, and what importing it must not load."""

import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]


def run_python(code):
    return subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)


def test_layers():
    pytest.importorskip("importlinter", reason="import-linter is not installed")
    result = run_python("from importlinter import cli; raise SystemExit(cli.lint_imports())")
    assert result.returncode == 0, result.stdout + result.stderr


def test_optional_dependencies_are_not_loaded():
    result = run_python("import sys, numpyro_ebm; print(*sys.modules)")
    assert result.returncode == 0, result.stderr
    loaded = {"matplotlib", "sklearn"}.intersection(result.stdout.split())
    assert not loaded
