"""Check the prose of Markdown files: at most 30 words a sentence, and one sentence a line.

    python scripts/check_prose.py [FILE...]

Without arguments it reads README.md, CONTRIBUTING.md, bench/README.md and all of docs/.  It does not read blocks of
code, comments and headings.  Every word counts, in code, links, formulas, the cells of tables and images' alt texts.
A sentence may go on over the items of a list, or over a formula.  The script prints each place that breaks a rule, and
ends with exit code 1 if there is any.
"""

import re
import sys
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
MOST_WORDS = 30
READ = ["README.md", "CONTRIBUTING.md", "bench/README.md", "docs/**/*.md"]

#: Ends of words that end no sentence.
ABBREVIATION = re.compile(r"\b(?:e\.g|i\.e|etc|cf|vs|et al|S|Fig|No)\.$")
END = re.compile(r"(?<=[.!?])(?P<close>[*_)\"”]*)\s+(?=[\"“(*_`\[]*[A-Z0-9±])")
ENDED = re.compile(r"[.!?][*_)\"”`]*$")
MARK = re.compile(r"^(?:[-*+]|\d+\.)\s+")
IMAGE = re.compile(r"!\[([^\]]*)\](?:\([^)]*\)|\[[^\]]*\])")
LINK = re.compile(r"\[([^\]]*)\](?:\([^)]*\)|\[[^\]]*\])")


def pieces(text: str) -> Iterator[tuple[int, str, str]]:
    """Yield the number, the kind and the text of each line that is read.

    Kinds are "prose", "item" (the first line of a list's item), "formula", and "alone" (a cell or an alt text).
    The kind "end" is for lines that end every sentence, such as a heading.
    """
    fence, comment, blank, formula, list_indent = "", False, True, False, -1
    for number, line in enumerate(text.splitlines(), 1):
        content, indent = line.strip(), len(line) - len(line.lstrip())
        kind = "end"
        if fence:
            fence = "" if content == fence else fence
        elif content.startswith("```"):
            fence = "```"
        elif comment or content.startswith("<!--"):
            comment = "-->" not in content
            kind = ""
        elif not content:
            kind = ""
        elif content.startswith("|"):
            yield from ((number, "alone", cell.strip()) for cell in re.split(r"(?<!\\)\|", content))
        elif not (content.startswith(("#", "<", "::: ")) or re.match(r"\[[^\]]+\]: ", content)):
            if MARK.match(content) and (indent < 4 or list_indent >= 0):
                kind, list_indent = "item", indent
            elif indent >= 4 and (blank or formula) and indent > list_indent + 3:
                kind = "formula"
            else:
                kind = "prose"
        if blank and indent == 0 and kind in ("prose", "end"):
            list_indent = -1
        yield from ((number, "alone", alt) for alt in IMAGE.findall(content) if kind == "prose")
        content = IMAGE.sub("", content).strip()
        if kind and (content or kind == "end"):
            yield number, kind, content
        blank, formula = not content, kind == "formula" or (not content and formula)


def plain(line: str) -> str:
    """Return a line without the marks of lists and links."""
    return MARK.sub("", LINK.sub(r"\1", line))


def sentences(line: str) -> list[str]:
    """Return the sentences of a line of prose."""
    found, start = [], 0
    for match in END.finditer(line):
        if not ABBREVIATION.search(line[: match.start()]):
            found.append(line[start : match.start()])
            start = match.end()
    return [*found, line[start:]]


def words(sentence: str) -> int:
    """Count the words: everything between spaces that has a letter or a digit."""
    return sum(any(character.isalnum() for character in word) for word in sentence.split())


def faults(path: Path) -> Iterator[str]:
    """Yield the places of a document that break a rule."""
    unended, before = "", ""
    for number, kind, content in pieces(path.read_text(encoding="utf-8")):
        if kind == "end":
            unended, before = "", ""
            continue
        parts = sentences(plain(content))
        if kind in ("prose", "item"):
            if len(parts) > 1:
                yield f"{path}:{number}: {len(parts)} sentences on a line: {parts[1][:60]}"
            ended = not before or before.endswith(":") or ENDED.search(before)
            if kind == "prose" and not ended and not content.startswith("**"):
                yield f"{path}:{number}: a sentence goes on from the line before: {content[:60]}"
        before = content if kind in ("prose", "item") else ""
        if kind == "alone" or (kind == "prose" and content[0].isupper()):
            unended = ""
        parts[0] = f"{unended} {parts[0]}".strip()
        for part in parts:
            if words(part) > MOST_WORDS:
                yield f"{path}:{number}: {words(part)} words, more than {MOST_WORDS}: {part[:60]}"
        unended = "" if kind == "alone" or ENDED.search(parts[-1]) else parts[-1]


def main() -> int:
    """Check the files given, or all, and return the exit code."""
    paths = [Path(name) for name in sys.argv[1:]] or sorted(path for pattern in READ for path in ROOT.glob(pattern))
    found = [fault for path in paths for fault in faults(path)]
    print(*found, f"{len(paths)} documents, {len(found)} faults", sep="\n")
    return int(bool(found))


if __name__ == "__main__":
    sys.exit(main())
