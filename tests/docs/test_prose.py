"""The check of the documents' prose finds long sentences wherever they are."""

import importlib.util
from pathlib import Path

import pytest

SCRIPT = Path(__file__).resolve().parents[2] / "scripts" / "check_prose.py"

pytestmark = [
    pytest.mark.any_build,
    pytest.mark.skipif(not SCRIPT.exists(), reason="scripts are only in a checkout"),
]

FIFTEEN = "one two three four five six seven eight nine ten eleven twelve 13 14 15"
THIRTY = f"{FIFTEEN} {FIFTEEN}"


@pytest.fixture(scope="module")
def check_prose():
    spec = importlib.util.spec_from_file_location("check_prose", SCRIPT)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def lines(check_prose, tmp_path):
    """Return a function that gives the numbers of a document's lines with faults."""

    def checked(text):
        path = tmp_path / "page.md"
        path.write_text(text, encoding="utf-8")
        return [int(fault.removeprefix(f"{path}:").split(":")[0]) for fault in check_prose.faults(path)]

    return checked


@pytest.mark.parametrize(
    ("text", "place"),
    [
        (f"{THIRTY} more.", 1),
        (f"{FIFTEEN} `{FIFTEEN}` more.", 1),
        (f"[{THIRTY} more](page.md).", 1),
        (f"![{THIRTY} more](chart.svg)", 1),
        (f"| cell | {THIRTY} more |", 1),
        (f"- item\n\n  {THIRTY} more.", 3),
        (f"- item\n  {THIRTY} more.", 2),
        (f"{FIFTEEN}:\n\n- {FIFTEEN}\n- more", 4),
        (f"With {FIFTEEN}\n\n    x = {FIFTEEN}", 3),
        (f"Let\n\n    x = 1\n\nwhere {THIRTY}.", 5),
        (f"```\ncode\n```\n{THIRTY} more.", 4),
    ],
)
def test_long_sentences_are_found(lines, text, place):
    assert place in lines(text)


@pytest.mark.parametrize(
    "text",
    [
        f"{THIRTY}.",
        f"{FIFTEEN}.\nA{THIRTY}.",
        f"# {THIRTY} more\n",
        f"```\n{THIRTY} more\n```",
        f"<!-- {THIRTY} more -->",
        f"![{THIRTY}](chart.svg)\n\nA {FIFTEEN}.",
        f"{FIFTEEN}.\n\n- {THIRTY}.\n- {THIRTY}.",
        f"Let\n\n    x = 1\n\nThen {FIFTEEN} and more.",
    ],
)
def test_short_sentences_pass(lines, text):
    assert lines(text) == []


def test_a_line_has_one_sentence(lines):
    assert lines("This is one. This is another.") == [1]
    assert lines("This sentence\ngoes on.") == [2]
