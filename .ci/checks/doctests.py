"""Run the examples in docstrings, and in the documents that are the arguments."""

import doctest
import importlib
import pkgutil
import re
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np

import qatcore


def results() -> Iterator[tuple[str, doctest.TestResults]]:
    """Yield the name and the result of every module and document."""
    for info in pkgutil.walk_packages(qatcore.__path__, "qatcore."):
        # Importing __main__ would run it, and importing kernels for another CPU would end the process.
        if info.name != "qatcore.__main__" and not info.name.startswith(("qatcore._kernels", "qatcore._gemm_")):
            yield info.name, doctest.testmod(importlib.import_module(info.name), extraglobs={"np": np})
    for name in sys.argv[1:]:
        # doctest would take a fence for the last line of the output before it.
        text = re.sub(r"^```.*$", "", Path(name).read_text(), flags=re.M)
        test = doctest.DocTestParser().get_doctest(text, {"__name__": "__main__"}, Path(name).name, name, 0)
        yield Path(name).name, doctest.DocTestRunner().run(test)


failed = attempted = 0
for name, result in results():
    failed += result.failed
    attempted += result.attempted
    print(f"{name}: {result.attempted} examples, {result.failed} failed")
assert attempted > 30, "examples are missing"
sys.exit(failed > 0)
