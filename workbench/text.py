"""Where words stand among a prompt's tokens."""

import re
from collections.abc import Sequence
from dataclasses import dataclass

from transformers import PreTrainedTokenizerBase


@dataclass(frozen=True)
class Tokens:
    """A prompt as the text encoder reads it: one entry per position, start, end and padding included.

    ids: the tokens' numbers. pieces: their texts. spans: their first and last character (exclusive) in the prompt, (0, 0) for the special
    ones. end: the position of the end token, behind which all is padding.
    """

    prompt: str
    ids: tuple[int, ...]
    pieces: tuple[str, ...]
    spans: tuple[tuple[int, int], ...]
    end: int

    def __repr__(self):
        return "  ".join(f"{i}:{piece}" for i, piece in enumerate(self.pieces[: self.end + 1]))

    def of(self, phrase: str) -> tuple[int, ...]:
        """Positions of a word or phrase, at every place where the prompt has it as whole words.

        Raises ValueError, showing the tokenization, when the prompt does not have it or the text encoder does not read
        that far.
        """
        if not (places := places_of(phrase, self.prompt)):
            raise ValueError(
                f"{phrase!r} is not in the prompt {self.prompt!r}, whose tokens are {self!r}; name a word that it has"
            )
        if places[-1][1] > self.spans[self.end - 1][1]:
            raise ValueError(
                f"{phrase!r} stands beyond what the text encoder reads of {self.prompt!r}: {self!r}; shorten the prompt"
            )
        inside = lambda span: span[1] > span[0] and any(span[0] < stop and start < span[1] for start, stop in places)
        return tuple(i for i, span in enumerate(self.spans) if inside(span))

    def positions(self, where: str | int | Sequence[int], subject: str | None = None) -> tuple[int, ...]:
        """Positions that an intervention's `tokens` names.

        where: "all", "subject", "subject_last", "after_subject", "eos", "padding", a word or phrase of the prompt, a
        position or several (negative ones count from the end of the sequence). subject: the phrase that "subject" means.
        """
        count = len(self.pieces)
        if isinstance(where, str):
            if where.startswith("subject") or where == "after_subject":
                if subject is None:
                    raise ValueError(
                        f"tokens={where!r}: the world of {self.prompt!r} names no subject; give World(..., subject=...)"
                    )
                span = self.of(subject)
                return {
                    "subject": span,
                    "subject_last": span[-1:],
                    "after_subject": tuple(range(span[-1] + 1, self.end)),
                }[where]
            named = {"all": range(count), "eos": (self.end,), "padding": range(self.end + 1, count)}
            return tuple(named[where]) if where in named else self.of(where)
        wanted = (where,) if isinstance(where, int) else tuple(where)
        if outside := [i for i in wanted if not -count <= i < count]:
            raise ValueError(f"tokens={outside}: the text encoder has positions 0 to {count - 1}; found {self!r}")
        return tuple(i % count for i in wanted)


def places_of(phrase: str, prompt: str) -> list[tuple[int, int]]:
    """First and last character (exclusive) of a phrase wherever a prompt has it as whole words, or as punctuation."""
    whole = rf"(?:(?<!\w)|(?!\w)){re.escape(phrase)}(?:(?!\w)|(?<!\w))"  # a letter has no letter beside it; a comma may
    return [match.span() for match in re.finditer(whole, prompt, re.IGNORECASE)] if phrase else []


def tokenize(tokenizer: PreTrainedTokenizerBase, prompt: str) -> Tokens:
    """The tokens of a prompt, cut and padded as diffusers does."""
    encoded = tokenizer(
        prompt,
        padding="max_length",
        truncation=True,
        max_length=tokenizer.model_max_length,
        return_offsets_mapping=True,
    )
    ids = encoded["input_ids"]
    return Tokens(
        prompt=prompt,
        ids=tuple(ids),
        pieces=tuple(token.removesuffix("</w>") for token in tokenizer.convert_ids_to_tokens(ids)),
        spans=tuple((start, stop) for start, stop in encoded["offset_mapping"]),
        end=ids.index(tokenizer.eos_token_id),
    )
