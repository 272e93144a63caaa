"""Words that a model never learned: pieces of a misspelt word, whose embeddings no training ever moved.

A byte-level vocabulary as CLIP's has a token for each of the 256 bytes, but thirteen of these (0xC0, 0xC1, 0xF5 to 0xFF) occur in no
text: UTF-8 never uses them. Their rows of the embedding table, 26 with those that end a word, were certainly never trained. So a
token counts as untrained where the norm of its row is within `WITHIN` standard deviations of theirs. Of a table whose end token,
which every prompt has, does not stand out from them by `TRAINED` standard deviations, nothing can be said, nor of a vocabulary that
lacks these bytes.

Measured on the embedded model, whose training captions are known (127 of 811 tokens occur in 60,000 of them): 682 of the 684 others
count as untrained, and of the 127 only the start token does, which is no word's; the end token stands out by 12 standard deviations.
"girafe" is read as gi, ra, f, e, of which three are untrained; "elephant", five tokens, has none.
"""

import warnings
from collections.abc import Iterable, Iterator

import torch

from workbench.locks import holding

NEVER_IN_TEXT = [chr(byte) + end for byte in (0xC0, 0xC1, *range(0xF5, 0x100)) for end in ("", "</w>")]
WITHIN = 3.0  # standard deviations
TRAINED = 6.0


def warn_of_untrained(model, words: Iterable[str], argument: str, stacklevel: int = 2):
    """Warn of words that hold tokens which a text encoder of the model never learned."""
    for word in dict.fromkeys(words):
        for encoder, pieces in untrained(model.pipeline, word):
            warnings.warn(
                f"{argument}: {word!r} holds {', '.join(map(repr, pieces))}, which {encoder} never learned: the embedding is as it was "
                "before training. Is it misspelt? An edit from or to it is about noise",
                stacklevel=stacklevel + 1,
            )


def untrained(pipeline, words: str) -> Iterator[tuple[str, list[str]]]:
    """Text encoders of a pipeline, each with the tokens of some words that it never learned, where it has such."""
    for end in ("", "_2"):
        encoder, tokenizer = (getattr(pipeline, f"{part}{end}", None) for part in ("text_encoder", "tokenizer"))
        if encoder is None or tokenizer is None:
            continue
        never = _never_trained(tokenizer, encoder.get_input_embeddings().weight)
        with holding(tokenizer):
            ids = dict.fromkeys(tokenizer(words, add_special_tokens=False, verbose=False)["input_ids"])
        if pieces := tokenizer.convert_ids_to_tokens([i for i in ids if never[i]]):
            yield f"text_encoder{end}", [token.removesuffix("</w>") for token in pieces]


@torch.no_grad()
def _never_trained(tokenizer, table: torch.Tensor) -> torch.Tensor:
    """Of an embedding table (token, channel): which rows are as those that no text can have trained, (token,)."""
    vocabulary, norms = tokenizer.get_vocab(), table.float().norm(dim=1).cpu()
    nothing = torch.zeros_like(norms, dtype=torch.bool)
    if not set(NEVER_IN_TEXT) <= vocabulary.keys() or tokenizer.eos_token_id is None:
        return nothing
    never = norms[[vocabulary[token] for token in NEVER_IN_TEXT]]
    apart = (norms - never.mean()).abs() / never.std()
    return apart <= WITHIN if apart[tokenizer.eos_token_id] > TRAINED else nothing
