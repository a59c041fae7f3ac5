"""The key tables of the parity cases, read as they stand, to hold our renaming rules against them."""

from __future__ import annotations

import itertools
import re


def table_names(table: dict[str, str], keys: list[str], **constants: int) -> dict[str, str]:
    """Where a case's table puts each key that one of its rows names.

    A row is ``source: target`` with alternatives in braces, running numbers as ``<i>`` and a star for any rest;
    several sources may stand in a row, remarks follow in brackets. ``unchanged`` means the source itself. Rows whose
    target is told in words, ``as for ...``, name no key.
    """
    rows = []
    for left, right in table.items():
        if right.startswith("as for"):
            continue
        sources = expand(left)
        targets = sources if right == "unchanged" else expand(right)
        assert len(sources) == len(targets), f"the table's row '{left}' has {len(sources)} sources, not {len(targets)}"
        rows += zip((pattern(text, constants) for text in sources), targets, strict=True)
    names = {}
    for key in keys:
        found = {place(target, match) for source, target in rows if (match := re.fullmatch(source, key))}
        assert len(found) < 2, f"the table has several places for {key}: {found}"
        names.update(dict.fromkeys([key], *found) if found else {})
    return names


def expand(text: str) -> list[str]:
    """The single names that a side of a row stands for, remarks removed."""
    text = re.sub(r" \([^{}]*\)$|: rows .*$", "", text)
    names = []
    for part in re.split(r",\s*(?![^{]*\})", text):
        pieces = re.split(r"\{([^}]*)\}", part)
        options = [piece.replace(" ", "").split(",") if index % 2 else [piece] for index, piece in enumerate(pieces)]
        names += ["".join(choice) for choice in itertools.product(*options)]
    return names


def pattern(source: str, constants: dict[str, int]) -> str:
    """A regular expression for a source: ``<i>`` becomes a group of that name, a star the group ``rest``."""
    for name, value in constants.items():
        source = source.replace(f"<{name}>", str(value))
    return re.sub(r"<(\w+)>", r"(?P<\1>\\d+)", re.escape(source)).replace("\\*", "(?P<rest>.+)")


def place(target: str, match: re.Match[str]) -> str:
    """A target with the numbers and the rest of the matching key."""
    for name, value in match.groupdict().items():
        target = target.replace("*" if name == "rest" else f"<{name}>", value)
    return target
