"""Which tokens of a source prompt become which of a target prompt: Prompt-to-Prompt's mapper M (Hertz et al. 2022, section 3.2).

Of equally good alignments the earliest is taken, as in the authors' published code, so that text which is appended to a prompt
leaves its own words their attention. Three things differ from that code on purpose. Behind words of unequal numbers of tokens it
maps a target's token to the source's at the same *position*, which is then another word; here what follows is shifted, and a
word keeps its own attention. Words are aligned, not tokens, so that half a word never takes another's attention. And words are
told apart by the tokenizer's offsets, not by spaces: punctuation is a word, a hyphenated word ("black-and-white") is one.
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
import pandas as pd
from transformers import PreTrainedTokenizerBase

from workbench.arguments import checked, instance_of, one_of
from workbench.inputs import text
from workbench.text import Joined, Tokens, tokenize

JOINTS = "'\\-\u2019\u2010\u2011"  # apostrophes and hyphens, which hold a word together between letters
WORD = re.compile(rf"\w+(?:[{JOINTS}]\w+)*|[^\w\s]+")  # a word, or a run of punctuation
Pair = tuple[tuple[int, ...], tuple[int, ...]]  # positions of a source word and of the target word that it becomes


@dataclass(frozen=True)
class Alignment:
    """Two prompts and what becomes of each word.

    pairs: source and target word; "" where the target has a word of its own, or the source one that is gone. matrix: M (source
    token, target token); a target token's attention is the source's maps times its column. new: positions of target tokens
    that no source token becomes: they keep their own attention.

    >>> found = wb.align(model.pipeline.tokenizer, "a zebra at night", "a lion at night")
    >>> found.pairs
    (('a', 'a'), ('zebra', 'lion'), ('at', 'at'), ('night', 'night'))
    >>> found.matrix.shape, found.new
    ((32, 32), ())
    """

    source: Tokens
    target: Tokens
    pairs: tuple[tuple[str, str], ...]
    matrix: np.ndarray = field(compare=False)  # follows from the prompts and the kind
    new: tuple[int, ...]

    def table(self) -> pd.DataFrame:
        """One row for each target token up to the end: where its attention comes from.

        >>> wb.align(model.pipeline.tokenizer, "a zebra", "a lion").table()
                        target               source
        0  <|startoftext|> (0)  <|startoftext|> (0)
        1                a (1)                a (1)
        2             lion (2)            zebra (2)
        3    <|endoftext|> (3)    <|endoftext|> (3)
        """
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

    A token that goes beyond a word's end, as a textual inversion "<cat>" does, makes one word of what it covers. Raises ValueError
    for a prompt that goes on behind what the text encoder reads.
    """
    found, reached = [], 0
    for match in WORD.finditer(tokens.prompt):
        start, stop = max(match.start(), reached), match.end()
        if stop > tokens.read:
            raise ValueError(
                f"{match[0]!r} stands beyond what the text encoder reads of {tokens.prompt!r}: {tokens!r}; shorten the prompt"
            )
        if own := tuple(i for i in tokens.own if start <= tokens.spans[i][0] < stop):
            reached = max(stop, *(tokens.spans[i][1] for i in own))
            found.append((tokens.prompt[start:reached], own))
    return found


def replace_matrix(pairs: Sequence[Pair], ends: tuple[int, int], length: int) -> np.ndarray:
    """M for replaced words: (source token, target token), each row summing to one, so that no attention is lost.

    pairs: positions of each source word and of its target word, both in order, a start token among them. ends: positions of the end
    tokens. Words of equally many tokens go over one to one; else each of n target tokens takes 1/n of every source token (the
    lecture's average).
    What follows is shifted; where the shift leaves no room, the last column takes the source's last paddings together.

    "a zebra" -> "an elephant", with the elephant of two tokens: start, a, zebra, end, pad, pad becomes
    start, an, ele, phant, end, pad, and the zebra's attention goes to "ele" and "phant" by halves:

    >>> replace_matrix([((0,), (0,)), ((1,), (1,)), ((2,), (2, 3))], ends=(3, 4), length=6)
    array([[1. , 0. , 0. , 0. , 0. , 0. ],
           [0. , 1. , 0. , 0. , 0. , 0. ],
           [0. , 0. , 0.5, 0.5, 0. , 0. ],
           [0. , 0. , 0. , 0. , 1. , 0. ],
           [0. , 0. , 0. , 0. , 0. , 1. ],
           [0. , 0. , 0. , 0. , 0. , 1. ]])
    """
    found = np.zeros((length, length))
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

    >>> refine_matrix([((0,), (0,)), ((1,), (1,)), ((2,), (3,))], ends=(3, 4), length=5)
    array([[1., 0., 0., 0., 0.],
           [0., 1., 0., 0., 0.],
           [0., 0., 0., 1., 0.],
           [0., 0., 0., 0., 1.],
           [0., 0., 0., 0., 0.]])
    """
    found = np.zeros((length, length))
    rest = range(min(length - ends[0], length - ends[1]))
    for old, new in [*pairs, *(((ends[0] + i,), (ends[1] + i,)) for i in rest)]:
        found[old, new] = 1
    return found


def common(a: Sequence[str], b: Sequence[str]) -> list[tuple[int, int]]:
    """Places of a and b that are aligned (Needleman and Wunsch 1970: match 1, mismatch -1, gap 0); of equally good ones the earliest.

    A mismatch never pays at these costs, so that what is aligned is equal.

    >>> common("a zebra".split(), "a zebra and a zebra".split())
    [(0, 0), (1, 1)]
    """
    score = np.zeros((len(a) + 1, len(b) + 1), int)
    for i, x in enumerate(a, 1):
        for j, y in enumerate(b, 1):
            score[i, j] = max(score[i - 1, j], score[i, j - 1], score[i - 1, j - 1] + (1 if x == y else -1))
    i, j, found = len(a), len(b), []
    while i and j:
        if score[i, j - 1] == score[i, j]:
            j -= 1
        elif score[i - 1, j] == score[i, j]:
            i -= 1
        else:
            i, j = i - 1, j - 1
            found.append((i, j))
    return found[::-1]


@checked(
    tokenizer=instance_of("transformers:PreTrainedTokenizerBase"),
    source=text,
    target=text,
    kind=one_of("replace", "refine"),
)
def align(tokenizer: PreTrainedTokenizerBase, source: str, target: str, kind: str = "replace") -> Alignment:
    """Align two prompts word by word, as a tokenizer reads them; `align_tokens` takes prompts with textual inversions.

    kind: "replace", word for word at the same places; "refine", equal words by Needleman-Wunsch, all others new.

    Raises ValueError for another kind, for prompts to be replaced whose numbers of words differ, and for a prompt that is too long.

    >>> wb.align(model.pipeline.tokenizer, "a zebra", "an old zebra", "refine")
    'a zebra' -> 'an old zebra': (nothing) -> an, (nothing) -> old, a -> (gone)
                 target              source
    <|startoftext|> (0) <|startoftext|> (0)
                 an (1)             its own
                  o (2)             its own
                  l (3)             its own
                  d (4)             its own
              zebra (5)           zebra (2)
      <|endoftext|> (6)   <|endoftext|> (3)
    """
    return align_tokens(tokenize(tokenizer, source), tokenize(tokenizer, target), kind)


def align_tokens(source: Tokens, target: Tokens, kind: str = "replace") -> Alignment:
    """Align two prompts whose tokens are known; see `align`."""
    if kind not in ("replace", "refine"):
        raise ValueError(f'kind={kind!r}: prompts are aligned to "replace" or to "refine"')
    before, after = words(source), words(target)
    if kind == "replace":
        _check_counts(source, target, before, after)
        places = [(i, i) for i in range(len(after))]
    else:
        places = common([word.lower() for word, _ in before], [word.lower() for word, _ in after])
    make = replace_matrix if kind == "replace" else refine_matrix
    starts = [
        ((i,), (i,)) for i in range(before[0][1][0] if before else source.end)
    ]  # special tokens in front of the words
    pairs = [*starts, *((before[i][1], after[j][1]) for i, j in places)]
    matrix = make(pairs, (source.end, target.end), len(source.ids))
    new = () if kind == "replace" else tuple(int(j) for j in np.flatnonzero(matrix.sum(0) == 0))
    sources, targets = {i for i, _ in places}, {j for _, j in places}
    said = [(j, (before[i][0], after[j][0])) for i, j in places]
    said += [(j, ("", word)) for j, (word, _) in enumerate(after) if j not in targets]
    said += [(len(after), (word, "")) for i, (word, _) in enumerate(before) if i not in sources]
    return Alignment(source, target, tuple(pair for _, pair in sorted(said, key=lambda each: each[0])), matrix, new)


def align_texts(source: Tokens, target: Tokens, kind: str = "replace") -> Alignment:
    """Align two prompts as a denoiser is given them: each encoder's tokens among themselves, where several encoders' follow each other."""
    if not (isinstance(source, Joined) and isinstance(target, Joined)):
        return align_tokens(source, target, kind)
    matrix, new, pairs = np.eye(len(source.ids)), [], ()
    for (start, _), old, after in zip(source.split(()), source.stretches, target.stretches):
        if old.ids:  # zeros that stand for no text stay themselves
            found = align_tokens(old, after, kind)
            own = slice(start, start + len(old.ids))
            matrix[own, own] = found.matrix
            new += [start + j for j in found.new]
            pairs = pairs or found.pairs
    return Alignment(source, target, pairs, matrix, tuple(new))


def _check_counts(source: Tokens, target: Tokens, before: Sequence, after: Sequence):
    """Raise ValueError, showing the words, unless both prompts have as many."""
    if len(before) != len(after):
        shown = lambda found: " | ".join(word for word, _ in found)
        raise ValueError(
            f'kind="replace" needs as many words in both prompts: {source.prompt!r} has {len(before)}, {target.prompt!r} has '
            f'{len(after)}; use kind="refine" for words that are added or taken away (words: {shown(before)}, and {shown(after)})'
        )
