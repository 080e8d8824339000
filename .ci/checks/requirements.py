"""Print the requirements for building and testing, from pyproject.toml alone."""

import sys
import tomllib
from collections.abc import Iterable, Iterator
from pathlib import Path

everything = tomllib.loads(Path(sys.argv[1]).read_text())
extras = everything["project"]["optional-dependencies"]


def expanded(requirements: Iterable[str]) -> Iterator[str]:
    """Yield requirements, with the package's own extras replaced by their requirements."""
    for requirement in requirements:
        if requirement.startswith("qatcore["):
            for extra in requirement.removeprefix("qatcore[").removesuffix("]").split(","):
                yield from expanded(extras[extra])
        else:
            yield requirement


wanted = [*everything["build-system"]["requires"], *everything["project"]["dependencies"], "qatcore[test]"]
print(*dict.fromkeys(expanded(wanted)), sep="\n")
