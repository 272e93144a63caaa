"""Where words stand among a prompt's tokens, and where they go when words are replaced."""

import re
from bisect import bisect_right
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from diffusers import DiffusionPipeline
from transformers import PreTrainedTokenizerBase

from workbench.families import family_of, length_read
from workbench.inputs import plain, shown, whole
from workbench.locks import holding

Span = tuple[int, int]  # first and last character (exclusive)

PARTS = ("all", "subject", "subject_last", "after_subject", "eos", "padding")
UNLIMITED = 10**6  # what a tokenizer without a limit calls its limit is larger
POSITIONS_FIX = f"give {', '.join(PARTS)}, a word of the prompt, a position, or several of these"


@dataclass(frozen=True)
class Tokens:
    """A prompt as a text encoder reads it: one entry per position, special ones and padding included.

    ids: the tokens' numbers. pieces: their texts. spans: their first and last character (exclusive) in the prompt, (0, 0) for the
    special ones; the vectors of a textual inversion all have its name's. end: the position of the end token, or behind the
    last token where the tokenizer puts none (`ended` says which); what follows is padding. read: how many characters of the prompt
    the text encoder reads.
    """

    prompt: str
    ids: tuple[int, ...]
    pieces: tuple[str, ...]
    spans: tuple[Span, ...]
    end: int
    ended: bool
    read: int

    def __repr__(self):
        return "  ".join(f"{i}:{piece}" for i, piece in enumerate(self.pieces[: self.end + 1]))

    @property
    def own(self) -> tuple[int, ...]:
        """Positions of the prompt's own text, without special tokens and padding."""
        return tuple(i for i, (start, stop) in enumerate(self.spans) if stop > start)

    def places(self, phrase: str) -> list[tuple[int, ...]]:
        """Positions of a word or phrase, for each place where the prompt has it as whole words.

        Raises ValueError, showing the tokenization, when the prompt does not have it or the text encoder does not read
        that far.
        """
        if not (places := places_of(phrase, self.prompt)):
            raise ValueError(
                f"{phrase!r} is not in the prompt {self.prompt!r}, whose tokens are {self!r}; name a word that it has"
            )
        if places[-1][1] > self.read:
            raise ValueError(
                f"{phrase!r} stands beyond what the text encoder reads of {self.prompt!r}: {self!r}; shorten the prompt"
            )
        return [tuple(i for i in self.own if _overlap(self.spans[i], place)) for place in places]

    def of(self, phrase: str) -> tuple[int, ...]:
        """Positions of a word or phrase, at every place where the prompt has it as whole words.

        A word of several tokens is all of them: whoever reads a map or a state of a word takes the mean over these positions (as
        Tang et al. 2022, arXiv 2210.04885, section 2.2, do for maps). Raises ValueError as `places` does.
        """
        return tuple(dict.fromkeys(i for place in self.places(phrase) for i in place))

    def positions(self, where: str | int | Iterable[str | int], subject: str | None = None) -> tuple[int, ...]:
        """Positions that an intervention's `tokens` names.

        where: "all"; "subject", at every place where the prompt has it; "subject_last", the last token of each place;
        "after_subject", from the last place to the end token; "eos"; "padding"; any other text is a word or phrase of the prompt; a
        position (negative ones count from the end of the sequence); or several of these. subject: the phrase that "subject" means.

        Raises ValueError for a word that the prompt lacks, a part that it names no subject for, a position outside the sequence,
        and for bools, floats and anything else.
        """
        where = plain(where)
        if isinstance(where, (str, int)) or not isinstance(where, Iterable):
            return self._part(where, subject)
        return tuple(dict.fromkeys(i for one in where for i in self._part(one, subject)))

    def _part(self, where: str | int, subject: str | None) -> tuple[int, ...]:
        count = len(self.pieces)
        if not isinstance(where, str):
            at = whole(where, f"tokens={shown(where)}", POSITIONS_FIX)
            if not -count <= at < count:
                raise ValueError(f"tokens={at}: the text encoder has positions 0 to {count - 1}; found {self!r}")
            return (at % count,)
        if where not in PARTS:
            return self.of(where)
        if where in ("subject", "subject_last", "after_subject"):
            if not subject:
                raise ValueError(
                    f"tokens={where!r}: the world of {self.prompt!r} names no subject; give World(..., subject=...)"
                )
            places = self.places(subject)
            return {
                "subject": self.of(subject),
                "subject_last": tuple(place[-1] for place in places),
                "after_subject": tuple(range(places[-1][-1] + 1, self.end)),
            }[where]
        if where == "eos" and not self.ended:
            raise ValueError(
                f"tokens='eos': the tokenizer puts no end token behind {self.prompt!r}: {self!r}; name another part"
            )
        first_padding = self.end + self.ended
        return tuple({"all": range(count), "eos": (self.end,), "padding": range(first_padding, count)}[where])


@dataclass(frozen=True, repr=False)
class Joined(Tokens):
    """A prompt as a denoiser is given it, where several encoders' tokens follow each other: positions count along them all.

    stretches: each encoder's reading of the prompt; one without ids is of zeros, which stand for no text.
    """

    stretches: tuple[Tokens, ...] = ()

    @classmethod
    def of_stretches(cls, prompt: str, stretches: Sequence[Tokens]) -> "Joined":
        """The readings of one prompt, in their order."""
        first = stretches[0]
        return cls(
            prompt=prompt,
            ids=tuple(i for each in stretches for i in (each.ids or (0,) * len(each.pieces))),
            pieces=tuple(piece for each in stretches for piece in each.pieces),
            spans=tuple(span for each in stretches for span in each.spans),
            end=first.end,
            ended=first.ended,
            read=min(each.read for each in stretches),
            stretches=tuple(stretches),
        )

    def split(self, positions: Iterable[int]) -> list[tuple[int, list[int]]]:
        """Where each stretch begins, and those of some positions that are its own, counted in it."""
        chosen, start, found = list(positions), 0, []
        for each in self.stretches:
            stop = start + len(each.pieces)
            found.append((start, [i - start for i in chosen if start <= i < stop]))
            start = stop
        return found

    def _part(self, where, subject):
        if not isinstance(where, str):
            return super()._part(where, subject)
        starts = (start for start, _ in self.split(()))
        return tuple(
            start + i
            for start, each in zip(starts, self.stretches)
            if each.ids or where in ("all", "padding")
            for i in each._part(where, subject)
        )


@dataclass(frozen=True)
class Replacement:
    """A prompt with a phrase replaced wherever it stands. text: the new prompt. places: of each, before and after."""

    prompt: str
    text: str
    places: tuple[tuple[Span, Span], ...]

    def aligned(self, old: Tokens, new: Tokens, positions: Iterable[int]) -> list[tuple[int, int]]:
        """Positions in the prompt, each with the one in the new text that takes its part.

        Place by place, words that are replaced are aligned at their ends: last token to last token, and what the shorter one
        lacks in front to its first. The tokens between the places, and behind them, are the same ones, shifted.

        Raises ValueError where a token beside a place is not the same in both (a phrase that is part of a longer word for the
        tokenizer), or stands beyond what the text encoder reads.
        """
        if isinstance(old, Joined) and isinstance(new, Joined):
            return [
                (start + i, start + j)
                for (start, own), a, b in zip(old.split(positions), old.stretches, new.stretches)
                for i, j in (self.aligned(a, b, own) if a.ids else zip(own, own))
            ]
        old_places, new_places = (
            [_inside(tokens, pair[side]) for pair in self.places] for side, tokens in enumerate((old, new))
        )
        if any(tokens.read < pair[side][1] for side, tokens in enumerate((old, new)) for pair in self.places):
            raise self._differ(old, new)
        keys = _keys(old, [before for before, _ in self.places])
        between = {key: j for j, key in _keys(new, [after for _, after in self.places]).items()}
        pairs = []
        for i in positions:
            if (k := next((k for k, place in enumerate(old_places) if i in place), None)) is not None:
                if not new_places[k]:
                    raise self._differ(old, new)
                j = max(new_places[k][-1] - (old_places[k][-1] - i), new_places[k][0])
            elif i in keys:
                if (j := between.get(keys[i])) is None or new.ids[j] != old.ids[i]:
                    raise self._differ(old, new)
            else:  # start token; end token and padding
                j = i if i < old.end else min(i - old.end + new.end, len(new.ids) - 1)
            pairs.append((i, j))
        return pairs

    def _differ(self, old: Tokens, new: Tokens) -> ValueError:
        return ValueError(
            f"the tokens of {self.prompt!r} and {self.text!r} do not correspond: {old!r} against {new!r}; name whole words "
            "that the tokenizer keeps apart, in a prompt that the text encoder reads to its end"
        )


def replace_words(prompt: str, phrase: str, replacement: str) -> Replacement:
    """Replace a phrase wherever a prompt has it as whole words, whatever its capitals.

    Raises ValueError for a prompt that does not have it.
    """
    if not (places := places_of(phrase, prompt)):
        raise ValueError(f"{phrase!r} is not in the prompt {prompt!r}; name words that it has")
    text, at, pairs = "", 0, []
    for start, stop in places:
        text += prompt[at:start]
        pairs.append(((start, stop), (len(text), len(text) + len(replacement))))
        text, at = text + replacement, stop
    return Replacement(prompt, text + prompt[at:], tuple(pairs))


def places_of(phrase: str, prompt: str) -> list[Span]:
    """First and last character (exclusive) of a phrase wherever a prompt has it as whole words, or as punctuation."""
    pattern = (
        rf"(?:(?<!\w)|(?!\w)){re.escape(phrase)}(?:(?!\w)|(?<!\w))"  # a letter has no letter beside it; a comma may
    )
    return [match.span() for match in re.finditer(pattern, prompt, re.IGNORECASE)] if phrase else []


def tokenize(tokenizer: PreTrainedTokenizerBase, prompt: str, *, length: int | None = None) -> Tokens:
    """The tokens of a prompt, cut and padded as diffusers does. length: of the sequence, the tokenizer's own limit when left out.

    A pipeline with textual inversions reads more tokens than its tokenizer gives: `tokens_of` knows them.

    Raises ValueError for a prompt that holds the tokenizer's own start or end token, for a tokenizer without a limit when no length
    is given, and for one that pads or cuts on the left or cannot say where its tokens stand.
    """
    with holding(tokenizer):
        return _tokens(tokenizer, prompt, prompt, None, length)


def tokens_of(
    pipeline: DiffusionPipeline, prompt: str, tokenizer: str = "tokenizer", *, length: int | None = None
) -> Tokens:
    """The tokens of a prompt as one of a pipeline's text encoders reads it. tokenizer: the component's name, as "tokenizer_2".

    A textual inversion of several vectors is one word of the prompt and as many tokens. Raises ValueError as `tokenize` does, and
    for a tokenizer that the pipeline lacks.
    """
    length = length_read(pipeline, tokenizer) if length is None else length
    found = getattr(pipeline, tokenizer, None)
    if not isinstance(found, PreTrainedTokenizerBase):
        names = ", ".join(tokenizers(pipeline)) or "none"
        raise ValueError(f"tokenizer={tokenizer!r}: the pipeline has no such tokenizer; it has {names}")
    with holding(found):
        convert = getattr(pipeline, "maybe_convert_prompt", None)
        converted = convert(prompt, found) if convert else prompt
        origins = _origins(found, prompt, converted)
        if (read := caption(pipeline, prompt)) != prompt:
            converted, origins = read, _caption_origins(pipeline, prompt, read)
        return _tokens(found, prompt, converted, origins, length)


def caption(pipeline: DiffusionPipeline, prompt: str) -> str:
    """A prompt as the pipeline gives it to its tokenizers: DeepFloyd's clean captions first (`clean_caption`)."""
    clean = getattr(pipeline, "_text_preprocessing", None)
    return prompt if clean is None else clean(prompt, clean_caption=True)[0]


def text_of(pipeline: DiffusionPipeline, prompt: str, which: int = 0) -> Tokens:
    """The tokens of a prompt as a pipeline's denoiser is given them, all encoders' together.

    which: of several tokenizers that read the same stretch of it, the number. Raises ValueError as `tokens_of` does.
    """
    family = family_of(pipeline)
    stretches = []
    for reading in family.read(family, pipeline):
        if reading.tokenizers:
            stretches.append(tokens_of(pipeline, prompt, reading.tokenizers[min(which, len(reading.tokenizers) - 1)]))
        else:
            blank = (("",) * reading.length, ((0, 0),) * reading.length)
            stretches.append(Tokens(prompt, (), *blank, end=0, ended=False, read=len(prompt)))
    return stretches[0] if len(stretches) == 1 else Joined.of_stretches(prompt, stretches)


def tokenizers(pipeline: DiffusionPipeline) -> tuple[str, ...]:
    """Names of a pipeline's tokenizers."""
    return tuple(name for name, part in pipeline.components.items() if isinstance(part, PreTrainedTokenizerBase))


def _tokens(
    tokenizer: PreTrainedTokenizerBase, prompt: str, converted: str, origins: Sequence[Span] | None, length: int | None
) -> Tokens:
    """Tokens of a converted prompt, with spans in the prompt itself. origins: of each converted character; its own place if None."""
    _check_tokenizer(tokenizer, prompt)
    length = tokenizer.model_max_length if length is None else length
    if length > UNLIMITED:
        raise ValueError(
            f"{type(tokenizer).__name__} has no limit of its own; give length=, that of the text encoder's sequence"
        )
    settings = dict(padding="max_length", truncation=True, max_length=length)
    encoded = tokenizer(converted, return_offsets_mapping=True, return_attention_mask=True, **settings)
    ids, mask = encoded["input_ids"], encoded["attention_mask"]
    last = max((i for i, attended in enumerate(mask) if attended), default=-1)
    ended = last >= 0 and ids[last] == tokenizer.eos_token_id
    spans = [_span(span, prompt, origins) for span in encoded["offset_mapping"]]
    read = len(prompt)
    if last == length - 1:  # full: something may be cut off
        uncut = tokenizer(converted, return_offsets_mapping=True, verbose=False)["offset_mapping"]
        own = [_span(span, prompt, origins) for span in uncut if span[1] > span[0]]
        held = sum(stop > start for start, stop in encoded["offset_mapping"])
        read = own[held][0] if held < len(own) else read
    return Tokens(
        prompt=prompt,
        ids=tuple(ids),
        pieces=tuple(map(_piece, tokenizer.convert_ids_to_tokens(ids))),
        spans=tuple(spans),
        end=last if ended else last + 1,
        ended=ended,
        read=read,
    )


def _check_tokenizer(tokenizer: PreTrainedTokenizerBase, prompt: str):
    name = type(tokenizer).__name__
    if not isinstance(prompt, str):
        raise ValueError(f"prompt={shown(prompt)}: tokens are told of one text at a time; give a text")
    if not tokenizer.is_fast:
        raise ValueError(
            f"{name} does not say where its tokens stand in the prompt; load the fast tokenizer (use_fast=True)"
        )
    if "left" in (tokenizer.padding_side, tokenizer.truncation_side):
        raise ValueError(
            f"{name} pads on the {tokenizer.padding_side} and cuts on the {tokenizer.truncation_side}; set its padding_side and "
            'truncation_side to "right", as diffusers reads prompts'
        )
    for token in (tokenizer.bos_token, tokenizer.eos_token):
        if token and token in prompt:
            raise ValueError(
                f"the prompt {prompt!r} holds {token!r}, which the tokenizer takes for its own special token, not for text; take "
                "it out of the prompt"
            )


def _piece(token: str) -> str:
    """A token's text without the tokenizer's sign for the end (CLIP) or the beginning (T5) of a word."""
    return token.removesuffix("</w>").removeprefix("▁")


def _span(span: Span, prompt: str, origins: Sequence[Span] | None) -> Span:
    """A token's place in the prompt, without the space that some tokenizers count to the word behind it."""
    start, stop = span
    if stop > start and origins is not None:
        start, stop = origins[start][0], origins[stop - 1][1]
    while start < stop - 1 and prompt[start].isspace():
        start += 1
    return start, stop


def _origins(tokenizer: PreTrainedTokenizerBase, prompt: str, converted: str) -> list[Span] | None:
    """Where each character of a converted prompt comes from; None where nothing was converted.

    A textual inversion "<cat>" of three vectors becomes "<cat> <cat>_1 <cat>_2" (diffusers' `maybe_convert_prompt`).
    """
    if converted == prompt:
        return None
    added = tokenizer.get_added_vocab()
    several = sorted((token for token in added if f"{token}_1" in added and token in prompt), key=len, reverse=True)
    text, origins, at = "", [], 0
    while at < len(prompt):
        name = next((token for token in several if prompt.startswith(token, at)), None)
        made = prompt[at] if name is None else " ".join([name, *_further(name, added)])
        stop = at + len(name or " ")
        text, origins, at = text + made, origins + [(at, stop)] * len(made), stop
    if text != converted:
        raise ValueError(
            f"the pipeline reads {prompt!r} as {converted!r}: its textual inversions {several} overlap, so that no token's place "
            "can be told; write them apart"
        )
    return origins


def _caption_origins(pipeline, prompt: str, read: str) -> list[Span]:
    """Where each character of a cleaned caption comes from, which is the prompt but for capitals and white space.

    Raises ValueError where the cleaning took or changed more, so that no token's place can be told.
    """
    letters = [(letter, (i, i + 1)) for i, own in enumerate(prompt) if not own.isspace() for letter in own.lower()]
    if [letter for letter, _ in letters] != [letter for letter in read if not letter.isspace()]:
        raise ValueError(
            f"{type(pipeline).__name__} cleans captions and reads {prompt!r} as {read!r}, so that its tokens' places cannot be told; give "
            "the prompt as it is read"
        )
    places, at = [], 0
    for letter in read:  # white space goes with what follows it
        places.append(letters[at][1])
        at += not letter.isspace()
    return places


def _further(name: str, added: Iterable[str]) -> list[str]:
    """The names of a textual inversion's vectors behind the first."""
    names, number = [], 1
    while f"{name}_{number}" in added:
        names.append(f"{name}_{number}")
        number += 1
    return names


def _overlap(span: Span, place: Span) -> bool:
    return span[0] < place[1] and place[0] < span[1]


def _inside(tokens: Tokens, place: Span) -> list[int]:
    return [i for i in tokens.own if _overlap(tokens.spans[i], place)]


def _keys(tokens: Tokens, places: Sequence[Span]) -> dict[int, tuple[int, int, int, int]]:
    """What names each token between the places of a phrase, in either prompt, by its position.

    The number of the stretch between two places, the token's first and last character in it, and how many tokens stand just there
    already (vectors of a textual inversion).
    """
    keys, seen = {}, Counter()
    for i in tokens.own:
        start, stop = tokens.spans[i]
        if any(_overlap((start, stop), place) for place in places):
            continue
        stretch = bisect_right([place[0] for place in places], start)
        origin = places[stretch - 1][1] if stretch else 0
        keys[i] = (stretch, start - origin, stop - origin, seen[start, stop])
        seen[start, stop] += 1
    return keys
