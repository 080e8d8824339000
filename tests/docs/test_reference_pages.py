"""Every public name is on one page of the reference, and nothing else is."""

import ast
import re
from importlib.util import find_spec
from pathlib import Path

import pytest

pytestmark = pytest.mark.any_build

PAGES = Path(__file__).resolve().parents[2] / "docs" / "reference"
MODULES = ["qatcore", "qatcore.reference", "qatcore.onnx", "qatcore.torch", "qatcore.dask", "qatcore.plot"]


def public_names(module):
    """Return a module's ``__all__`` from its source: some need packages that are not here."""
    source = Path(find_spec(module).origin).read_text(encoding="utf-8")
    [names] = [
        ast.literal_eval(statement.value)
        for statement in ast.parse(source).body
        if isinstance(statement, ast.Assign) and ast.unparse(statement.targets[0]) == "__all__"
    ]
    return [f"{module}.{name}" for name in names]


def described():
    """Return what the pages describe, each name as often as it is there."""
    return [
        name
        for page in sorted(PAGES.glob("*.md"))
        for name in re.findall(r"^::: (\S+)$", page.read_text(encoding="utf-8"), re.MULTILINE)
    ]


@pytest.mark.parametrize("module", MODULES)
def test_every_public_name_is_on_a_page(module):
    # A module that is public has a page of its own, which the next test checks.
    assert set(public_names(module)) - set(MODULES) <= set(described())


def test_pages_describe_public_names_alone_and_once():
    public = {name for module in MODULES for name in public_names(module)}
    assert len(public) > 70
    assert sorted(described()) == sorted(public - set(MODULES))


@pytest.mark.parametrize("module", MODULES[1:])
def test_every_module_has_a_page(module):
    page = PAGES / f"{module.removeprefix('qatcore.')}.md"
    assert page.read_text(encoding="utf-8").startswith(f"# {module}\n")
