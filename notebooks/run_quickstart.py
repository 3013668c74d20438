"""Run a notebook, keep the executed copy, and print where its figures are and what it found.

The notebook finds a folder named in the environment variable NUMPYRO_EBM_OUTPUT. It saves its
figures there as PNG files, and its results as `results.json`: one flat table, label to text.
"""

import argparse
import json
import os
import sys
import time
from pathlib import Path

import nbformat
from nbconvert import HTMLExporter
from nbconvert.preprocessors import CellExecutionError, ExecutePreprocessor


def execute(notebook_path, output, timeout):
    """Runs the notebook and writes it, with what it printed, as a notebook and as a page.

    Args:
        notebook_path: The notebook to run, in the folder it is in.
        output: The folder to write to.
        timeout: Seconds that one cell may take.

    Returns:
        The paths written, and the error that stopped the notebook, or `None`.
    """
    notebook = nbformat.read(notebook_path, as_version=4)
    executor = ExecutePreprocessor(
        timeout=timeout, kernel_name="python3", extra_arguments=["--Application.log_level=ERROR"]
    )
    error = None
    try:
        executor.preprocess(notebook, {"metadata": {"path": str(notebook_path.parent)}})
    except CellExecutionError as raised:
        error = raised
    written = [output / f"{notebook_path.stem}.ipynb", output / f"{notebook_path.stem}.html"]
    nbformat.write(notebook, written[0])
    written[1].write_text(HTMLExporter().from_notebook_node(notebook)[0], encoding="utf-8")
    return written, error


def main():
    """Runs the notebook named on the command line; returns the exit status."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    here = Path(__file__).resolve().parent
    parser.add_argument("--notebook", type=Path, default=here / "quickstart.ipynb")
    parser.add_argument("--output", type=Path, default=here.parent / "build" / "quickstart")
    parser.add_argument("--timeout", type=int, default=900, help="seconds that one cell may take")
    options = parser.parse_args()
    if not options.notebook.is_file():
        parser.error(f"there is no notebook {options.notebook}")

    output = options.output.resolve()
    output.mkdir(parents=True, exist_ok=True)
    os.environ["NUMPYRO_EBM_OUTPUT"] = str(output)
    results_path = output / "results.json"
    results_path.unlink(missing_ok=True)

    print(f"Running {options.notebook.name}; this takes some minutes", flush=True)
    start = time.time()
    written, error = execute(options.notebook.resolve(), output, options.timeout)
    print(f"Executed notebook  {written[0]}")
    print(f"The same, to read  {written[1]}")
    for figure in sorted(output.glob("*.png")):
        if figure.stat().st_mtime >= start:
            print(f"Figure             {figure}")
    if error is not None:
        print(error, file=sys.stderr)
        return 1
    if not results_path.is_file():
        print(f"The notebook wrote no {results_path}", file=sys.stderr)
        return 1

    results = json.loads(results_path.read_text(encoding="utf-8"))
    results["Time"] = f"{time.time() - start:.0f} s"
    width = max(map(len, results))
    print()
    for label, value in results.items():
        print(f"{label:<{width}}  {value}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
