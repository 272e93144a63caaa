"""Which tokens of a source prompt become which of a target prompt: Prompt-to-Prompt's mapper M (Hertz et al. 2022, section 3.2)."""

import re
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
import pandas as pd
from transformers import PreTrainedTokenizerBase

from workbench.text import Tokens, tokenize

WORD = re.compile(r"\w+(?:'\w+)*|[^\w\s]+")  # a run of letters with its apostrophes, or of punctuation
Pair = tuple[tuple[int, ...], tuple[int, ...]]  # positions of a source word and of the target word that it becomes


@dataclass(frozen=True)
class Alignment:
    """Two prompts and what becomes of each word.

    pairs: source and target word; "" where the target has a word of its own, or the source one that is gone. matrix: M (source
    token, target token); a target token's attention is the source's maps times its column. new: positions of target tokens
    that no source token becomes: they keep their own attention.
    """

    source: Tokens
    target: Tokens
    pairs: tuple[tuple[str, str], ...]
    matrix: np.ndarray = field(compare=False)  # follows from the prompts and the kind
    new: tuple[int, ...]

    def table(self) -> pd.DataFrame:
        """One row for each target token up to the end: where its attention comes from."""
        rows = []
        for j, piece in enumerate(self.target.pieces[: self.target.end + 1]):
            shares = {i: self.matrix[i, j] for i in np.flatnonzero(self.matrix[:, j])}
            parts = [
                f"{'' if share == 1 else f'{share:.3g} x '}{self.source.pieces[i]} ({i})" for i, share in shares.items()
            ]
            rows.append({"target": f"{piece} ({j})", "source": "its own" if j in self.new else " + ".join(parts)})
        return pd.DataFrame(rows)

    def __repr__(self):
        changed = ", ".join(f"{a or '(nothing)'} -> {b or '(gone)'}" for a, b in self.pairs if a.lower() != b.lower())
        return f"{self.source.prompt!r} -> {self.target.prompt!r}: {changed or 'the same words'}\n{self.table().to_string(index=False)}"


def words(tokens: Tokens) -> list[tuple[str, tuple[int, ...]]]:
    """Words and runs of punctuation of a prompt, each with its tokens' positions, by the tokenizer's character offsets.

    Raises ValueError for a prompt that goes on behind what the text encoder reads.
    """
    found = []
    for match in WORD.finditer(tokens.prompt):
        start, stop = match.span()
        own = tuple(i for i, span in enumerate(tokens.spans) if start <= span[0] < min(stop, span[1]))
        if not own and start >= tokens.spans[tokens.end - 1][1]:
            raise ValueError(
                f"{match[0]!r} stands beyond what the text encoder reads of {tokens.prompt!r}: {tokens!r}; shorten the prompt"
            )
        if own:  # else its letters belong to a token that begins in the word before
            found.append((match[0], own))
    return found


def replace_matrix(pairs: Sequence[Pair], ends: tuple[int, int], length: int) -> np.ndarray:
    """M for replaced words: (source token, target token), each row summing to one, so that no attention is lost.

    pairs: positions of each source word and of its target word, both in order. ends: positions of the end tokens. Words of equally
    many tokens go over one to one; else each of n target tokens takes 1/n of every source token (the lecture's average).
    What follows is shifted; where the shift leaves no room, the last column takes the source's last paddings together.

    "a zebra" -> "an elephant", with the elephant of two tokens: start, a, zebra, end, pad, pad becomes
    start, an, ele, phant, end, pad, and the zebra's attention goes to "ele" and "phant" by halves:

    >>> replace_matrix([((1,), (1,)), ((2,), (2, 3))], ends=(3, 4), length=6)
    array([[1. , 0. , 0. , 0. , 0. , 0. ],
           [0. , 1. , 0. , 0. , 0. , 0. ],
           [0. , 0. , 0.5, 0.5, 0. , 0. ],
           [0. , 0. , 0. , 0. , 1. , 0. ],
           [0. , 0. , 0. , 0. , 0. , 1. ],
           [0. , 0. , 0. , 0. , 0. , 1. ]])
    """
    found = np.zeros((length, length))
    found[0, 0] = 1
    for old, new in pairs:
        if len(old) == len(new):
            found[old, new] = 1
        else:
            found[np.ix_(old, new)] = 1 / len(new)
    for i in range(ends[0], length):
        found[i, min(i - ends[0] + ends[1], length - 1)] += 1
    return found


def refine_matrix(pairs: Sequence[Pair], ends: tuple[int, int], length: int) -> np.ndarray:
    """M for added words: aligned tokens take their source's column, the columns of all others are empty.

    "a zebra" -> "a big zebra": start, a, zebra, end, pad becomes start, a, big, zebra, end.

    >>> refine_matrix([((1,), (1,)), ((2,), (3,))], ends=(3, 4), length=5)
    array([[1., 0., 0., 0., 0.],
           [0., 1., 0., 0., 0.],
           [0., 0., 0., 1., 0.],
           [0., 0., 0., 0., 1.],
           [0., 0., 0., 0., 0.]])
    """
    found = np.zeros((length, length))
    rest = range(min(length - ends[0], length - ends[1]))
    for old, new in [((0,), (0,)), *pairs, *(((ends[0] + i,), (ends[1] + i,)) for i in rest)]:
        found[old, new] = 1
    return found


def common(a: Sequence[str], b: Sequence[str]) -> list[tuple[int, int]]:
    """Places of a and b that are aligned (Needleman and Wunsch 1970: match 1, mismatch -1, gap 0); of equally good ones the latest.

    A mismatch never pays at these costs, so that what is aligned is equal.
    """
    score = np.zeros((len(a) + 1, len(b) + 1), int)
    for i, x in enumerate(a, 1):
        for j, y in enumerate(b, 1):
            score[i, j] = max(score[i - 1, j], score[i, j - 1], score[i - 1, j - 1] + (1 if x == y else -1))
    i, j, found = len(a), len(b), []
    while i and j:
        if a[i - 1] == b[j - 1]:
            i, j = i - 1, j - 1
            found.append((i, j))
        elif score[i, j - 1] == score[i, j]:
            j -= 1
        else:
            i -= 1
    return found[::-1]


def align(tokenizer: PreTrainedTokenizerBase, source: str, target: str, kind: str = "replace") -> Alignment:
    """Align two prompts word by word.

    kind: "replace", word for word at the same places; "refine", equal words by Needleman-Wunsch, all others new.

    Raises ValueError for another kind, for prompts to be replaced whose numbers of words differ, and for a prompt that is too long.
    """
    if kind not in ("replace", "refine"):
        raise ValueError(f'kind={kind!r}: prompts are aligned to "replace" or to "refine"')
    old, new = tokenize(tokenizer, source), tokenize(tokenizer, target)
    before, after = words(old), words(new)
    if kind == "replace" and len(before) != len(after):
        raise ValueError(
            f'kind="replace" needs as many words in both prompts: {source!r} has {len(before)}, {target!r} has {len(after)}; '
            'use kind="refine" for words that are added or taken away'
        )
    lower = lambda found: [word.lower() for word, _ in found]
    places = (
        list(zip(range(len(before)), range(len(after)))) if kind == "replace" else common(lower(before), lower(after))
    )
    make = replace_matrix if kind == "replace" else refine_matrix
    matrix = make([(before[i][1], after[j][1]) for i, j in places], (old.end, new.end), len(old.ids))
    new_tokens = () if kind == "replace" else tuple(int(j) for j in np.flatnonzero(matrix.sum(0) == 0))
    sources, targets = {i for i, _ in places}, {j for _, j in places}
    pairs = [(j, (before[i][0], after[j][0])) for i, j in places]
    pairs += [(j, ("", word)) for j, (word, _) in enumerate(after) if j not in targets]
    pairs += [(len(after), (word, "")) for i, (word, _) in enumerate(before) if i not in sources]
    return Alignment(old, new, tuple(pair for _, pair in sorted(pairs, key=lambda found: found[0])), matrix, new_tokens)
