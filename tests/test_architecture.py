"""The package's structure is the one that docs/architecture.md shows."""

import ast
import re
import subprocess
import sys
from pathlib import Path

import pytest

import qatcore

PACKAGE = Path(qatcore.__file__).parent
DOCUMENT = Path(__file__).parents[1] / "docs" / "architecture.md"
PUBLIC = ("__init__", "reference", "onnx", "torch", "dask", "plot")

pytestmark = pytest.mark.any_build


def imports():
    """Return, for each module, the modules of the package that it imports, as paths of names below the package."""
    modules = {path.relative_to(PACKAGE).with_suffix("").parts: path for path in PACKAGE.rglob("*.py")}
    found = {}
    for module, path in modules.items():
        found[module] = set()
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.ImportFrom) and node.level:
                base = module[: len(module) - node.level] + tuple((node.module or "").split(".") if node.module else ())
                for alias in node.names:
                    target = (*base, alias.name)
                    found[module].add(target if target in modules or target == ("_kernels",) else base)
    return {module: {target for target in targets if target} for module, targets in found.items()}


def table():
    """Return what each place may import."""
    rows = re.findall(r"^\| (`[^|]*`) \| [^|]* \| ?([^|]*) ?\|$", DOCUMENT.read_text(), flags=re.M)
    places = {}
    for names, allowed in rows:
        for name in re.findall(r"`([^`]*)`", names):
            places[name.strip("/").removesuffix(".py")] = set(re.findall(r"`([^`]*)`", allowed))
    return places


@pytest.mark.skipif(not DOCUMENT.exists(), reason="the tests are away from the documentation")
def test_places_import_what_the_table_says():
    actual = {}
    for module, targets in imports().items():
        actual.setdefault(module[0], set()).update(target[0] for target in targets if target[0] != module[0])
    documented = {place: allowed for place, allowed in table().items() if place in actual}
    assert documented.keys() == actual.keys()
    together = documented["onnx"]  # a row for two faces
    documented |= {"onnx": {"_onnx"}, "torch": {"_torch"}}
    assert together == {"_onnx", "_torch"}
    assert documented == actual


def test_nothing_is_imported_in_a_circle():
    graph = imports()
    done, doing = set(), []

    def visit(module):
        assert module not in doing, f"a circle: {doing[doing.index(module) :]}"
        if module not in done:
            doing.append(module)
            for target in sorted(graph.get(module, ())):
                visit(target)
            done.add(doing.pop())

    for module in sorted(graph):
        visit(module)


def test_what_is_public_has_no_underscore_and_all_else_has_one():
    for path in PACKAGE.iterdir():
        if path.suffix == ".py":
            assert path.stem in PUBLIC or path.stem.startswith("_"), path
        elif path.is_dir() and list(path.glob("*.py")):
            assert path.name.startswith("_"), path


def test_importing_the_package_imports_numpy_and_ml_dtypes_alone():
    program = (
        "import sys, numpy, ml_dtypes\n"
        "before = set(sys.modules)\n"
        "import qatcore\n"
        "new = {name.partition('.')[0] for name in set(sys.modules) - before}\n"
        "new -= {*sys.stdlib_module_names, 'qatcore', 'numpy', 'ml_dtypes', 'cython_runtime'}\n"
        "print([name for name in new if not name.startswith('_cython_')])"
    )
    done = subprocess.run(
        [sys.executable, "-c", program], cwd=PACKAGE.parent, capture_output=True, text=True, check=True
    )
    assert done.stdout == "[]\n"
