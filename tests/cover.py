"""Few rows of a table that hold every pair (or every triple, ...) of levels of its factors: a covering design, made greedily.

cover({"size": (1, 2, 3), "colour": ("red", "blue"), "lit": (True, False)}, strength=2)   # 6 rows instead of 12
"""

from collections.abc import Mapping, Sequence
from itertools import combinations, product
from zlib import crc32


def cover(factors: Mapping[str, Sequence], strength: int) -> list[dict]:
    """Rows, one level of each factor, that together hold every combination of levels of any `strength` factors.

    Always the same rows, in the same order. Each begins with the first combination that is not covered yet; what it leaves open
    takes, factor by factor, the level that covers most of what is left; among equals a checksum decides, lest factors run in step.
    """
    names, levels = list(factors), [range(len(values)) for values in factors.values()]
    groups = list(combinations(range(len(names)), min(strength, len(names))))
    left = {group: dict.fromkeys(product(*(levels[i] for i in group))) for group in groups}
    rows: list[list[int]] = []
    while any(left.values()):
        group = max(groups, key=lambda each: len(left[each]))
        row: list[int | None] = [None] * len(names)
        for i, level in zip(group, next(iter(left[group]))):
            row[i] = level
        for i in sorted((i for i in range(len(names)) if row[i] is None), key=lambda i: -len(levels[i])):
            row[i] = min(
                levels[i], key=lambda level: (-_gain(left, row, i, level), crc32(f"{row} {i} {level}".encode()))
            )
        for each in groups:
            left[each].pop(tuple(row[i] for i in each), None)
        rows.append(row)
    return [{name: factors[name][level] for name, level in zip(names, row)} for row in rows]


def _gain(left: Mapping[tuple, Mapping], row: Sequence[int | None], i: int, level: int) -> int:
    """How many combinations a level would newly cover, of those whose other levels stand already."""
    tried = [level if j == i else value for j, value in enumerate(row)]
    return sum(
        tuple(tried[j] for j in group) in open_
        for group, open_ in left.items()
        if i in group and all(tried[j] is not None for j in group)
    )
