"""Quantise a real model, and compare the results: magika detects the type of a file from its bytes.

    pip install '.[onnx]' && pip install --no-deps magika==1.0.3
    python examples/quantise_magika.py

The model comes with the package magika.  The data are files of this machine; their suffixes say their types.  A few
files calibrate the model, and the others test it.  The results go to the folder ``magika``, or to another folder that
you give.
"""

import argparse
import subprocess
import sys
from pathlib import Path

# At the end, so that the installed qatcore comes first: the checkout may have no compiled modules.
sys.path.append(str(Path(__file__).resolve().parents[1]))

from bench import onnx_data


def main() -> None:
    """Make the data, and run the two commands."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "directory", nargs="?", type=Path, default=Path("magika"), help="folder for all files (default: magika)"
    )
    directory = parser.parse_args().directory
    onnx_data.write(onnx_data.magika(80), directory)
    model, quantised = directory / "model.onnx", directory / "int8.onnx"
    run("quantize", model, "--data", directory / "calibration.npz", "-o", quantised)
    run("compare", model, quantised, "--data", directory / "test.npz", "--labels", "label")


def run(*arguments: str | Path) -> None:
    """Show and run a command of the installed package; if it fails, exit with its status."""
    words = [str(argument) for argument in arguments]
    print("\n$ qatcore", *words, flush=True)
    status = subprocess.run([sys.executable, "-P", "-m", "qatcore", *words], check=False).returncode
    if status:
        sys.exit(status)


if __name__ == "__main__":
    main()
