"""Check the prose of README.md and docs/: no sentence over 30 words, and one sentence a line.

    python scripts/check_prose.py [FILE...]

Code, tables, formulas, comments and headings are not read.  It prints each place that breaks a rule, and ends with
exit code 1 if there is any.
"""

import re
import sys
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
MOST_WORDS = 30

#: What may follow a number or a list's mark, and ends no sentence.
ABBREVIATION = re.compile(r"\b(?:e\.g|i\.e|etc|cf|vs|et al|S|Fig|No)\.$")
END = re.compile(r"(?<=[.!?])(?P<close>[*_)\"”]*)\s+(?=[\"“(*_`\[]*[A-Z0-9±])")
MARK = re.compile(r"^(?:[-*+]|\d+\.)\s+")


def prose(text: str) -> Iterator[tuple[int, str]]:
    """Yield the number and the text of each line of prose, without the marks of lists and quotes."""
    fence, comment, blank, in_list = "", False, True, False
    for number, line in enumerate(text.splitlines(), 1):
        content = line.strip()
        if fence:
            fence = "" if content == fence else fence
        elif content.startswith("```"):
            fence = "```"
        elif comment or content.startswith("<!--"):
            comment = "-->" not in content
        elif not content:
            blank = True
            yield number, ""
            continue
        elif content.startswith(("|", "#", "<", "![", "::: ")) or re.match(r"\[[^\]]+\]: ", content):
            yield number, ""
        elif line.startswith("    ") and blank and not in_list:
            yield number, ""  # a formula, and so is what follows it without a blank line
            continue
        else:
            in_list = bool(MARK.match(content)) or (in_list and line.startswith("  "))
            yield number, content
        blank = False


def plain(line: str) -> str:
    """Return a line with one word for each piece of code and each link's text in place of the link."""
    line = re.sub(r"`[^`]+`", "code", line)
    line = re.sub(r"!?\[([^\]]*)\](?:\([^)]*\)|\[[^\]]*\])", r"\1", line)
    return MARK.sub("", line)


def sentences(line: str) -> list[str]:
    """Return the sentences of a line of prose."""
    found, start = [], 0
    for match in END.finditer(line):
        if not ABBREVIATION.search(line[: match.start()]):
            found.append(line[start : match.start()])
            start = match.end()
    return [*found, line[start:]]


def words(sentence: str) -> int:
    """Count what has a letter or a digit; formulas count as they are written."""
    return sum(any(character.isalnum() for character in word) for word in sentence.split())


def faults(path: Path) -> Iterator[str]:
    """Yield what breaks a rule in a document."""
    before = ""
    for number, content in prose(path.read_text(encoding="utf-8")):
        parts = sentences(plain(content)) if content else []
        if len(parts) > 1:
            yield f"{path}:{number}: {len(parts)} sentences on a line: {parts[1][:60]}"
        for part in parts:
            if words(part) > MOST_WORDS:
                yield f"{path}:{number}: {words(part)} words, more than {MOST_WORDS}: {part[:60]}"
        ended = not before or before.rstrip('*_)"”').endswith((".", "!", "?", ":"))
        if content and not ended and not MARK.match(content) and not content.startswith("**"):
            yield f"{path}:{number}: a sentence goes on from the line before: {content[:60]}"
        before = content


def main() -> int:
    """Check the files given, or README.md and all of docs/, and return the exit code."""
    paths = [Path(name) for name in sys.argv[1:]] or [ROOT / "README.md", *sorted(ROOT.glob("docs/**/*.md"))]
    found = [fault for path in paths for fault in faults(path)]
    print(*found, f"{len(paths)} documents, {len(found)} faults", sep="\n")
    return int(bool(found))


if __name__ == "__main__":
    sys.exit(main())
