"""Quantise a real model, and see what is lost: magika tells the type of a file from its bytes.

    pip install '.[onnx]' && pip install --no-deps magika==1.0.3
    python examples/quantise_magika.py

The model comes with the package magika.  The data are files of this machine, whose suffixes tell their types: a few
calibrate the model, and the others test it.  What is made goes to the folder ``magika``, or to the one that is given.
"""

import argparse
import subprocess
import sys
from pathlib import Path

# Behind what is installed: the checkout's own qatcore may have no compiled modules.
sys.path.append(str(Path(__file__).resolve().parents[1]))

from bench import onnx_data


def main() -> None:
    """Make the data, and run both commands."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "directory", nargs="?", type=Path, default=Path("magika"), help="for the model and data (magika)"
    )
    directory = parser.parse_args().directory
    onnx_data.write(onnx_data.magika(80), directory)
    model, quantised = directory / "model.onnx", directory / "int8.onnx"
    run("quantize", model, "--data", directory / "calibration.npz", "-o", quantised)
    run("compare", model, quantised, "--data", directory / "test.npz", "--labels", "label")


def run(*arguments: str | Path) -> None:
    """Show and run a command of the installed package, and end as it does if it fails."""
    words = [str(argument) for argument in arguments]
    print("\n$ qatcore", *words, flush=True)
    status = subprocess.run([sys.executable, "-P", "-m", "qatcore", *words], check=False).returncode
    if status:
        sys.exit(status)


if __name__ == "__main__":
    main()
