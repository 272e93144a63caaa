"""Words are found where they stand, however many tokens they are, and stay themselves when others are replaced."""

import numpy as np
import pytest
import torch
from conftest import sd1, sdxl
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from transformers import CLIPTokenizer, PreTrainedTokenizerFast

from workbench.models import MENAGERIE
from workbench.text import replace_words, tokenize, tokens_of


@pytest.fixture(scope="module")
def tokenizer():
    return CLIPTokenizer.from_pretrained(MENAGERIE / "tokenizer")


@pytest.fixture(scope="module")
def tokens(tokenizer):
    return lambda prompt: tokenize(tokenizer, prompt)


def sentencepiece(end: str | None = "</s>") -> PreTrainedTokenizerFast:
    """As T5's: no start token, a sign in front of each word, and with None no end token either."""
    pieces = ["▁a", "▁", "▁zebra", "▁in", "▁the", "▁savanna", "▁elep", "hant", "▁cow", "s", ",", "▁and"]
    vocabulary = [("<pad>", 0.0), ("</s>", 0.0), ("<unk>", 0.0), *((piece, -1.0) for piece in pieces)]
    found = Tokenizer(models.Unigram(vocabulary, unk_id=2))
    found.pre_tokenizer = pre_tokenizers.Metaspace()
    if end:
        found.post_processor = processors.TemplateProcessing(single="$A </s>", special_tokens=[("</s>", 1)])
    return PreTrainedTokenizerFast(tokenizer_object=found, eos_token=end, pad_token="<pad>", unk_token="<unk>")


def pieces(found, positions) -> list[str]:
    return [found.pieces[i] for i in positions]


def test_a_word_is_all_its_tokens_at_all_its_places(tokens):
    found = tokens("An Elephant next to a red  hydrant, not an elephant")
    words = lambda where: "".join(found.pieces[i] for i in where)
    assert words(found.of("elephant")) == "elephantelephant"
    assert words(found.of("red  hydrant")) == "redhydrant" and len(found.of("hydrant")) == 5
    assert found.pieces[found.end] == "<|endoftext|>" and len(found.pieces) == 32
    assert [words(place) for place in found.places("elephant")] == ["elephant", "elephant"]
    assert words(found.own) == "anelephantnexttoaredhydrant,notanelephant"


def test_named_positions(tokens):
    found = tokens("a zebra on the beach")
    assert found.positions("subject", "zebra") == found.positions("subject_last", "zebra") == (2,)
    assert found.positions("after_subject", "zebra") == (3, 4, 5)
    assert found.positions("eos") == (6,) and found.positions("padding") == tuple(range(7, 32))
    assert found.positions("all") == tuple(range(32)) and found.positions("the beach") == (4, 5)
    assert found.positions(-1) == (31,) and found.positions([0, 2]) == (0, 2)
    assert tokens("a flamingo").positions("subject_last", "flamingo") == (7,)


def test_a_subject_that_stands_twice_has_two_last_tokens(tokens):
    found = tokens("an elephant next to an elephant")
    assert pieces(found, found.positions("subject_last", "elephant")) == ["ant", "ant"]
    assert found.positions("subject", "elephant") == found.of("elephant") and len(found.of("elephant")) == 10
    assert found.positions("after_subject", "elephant") == ()


@pytest.mark.parametrize(
    ("where", "expected"),
    [
        (np.int64(2), (2,)),
        (np.array([2, -1]), (2, 31)),
        (np.array(2), (2,)),
        (torch.tensor([0, 2]), (0, 2)),
        (range(3), (0, 1, 2)),
        ([2, 2, -30], (2,)),
        (("subject", "eos"), (2, 6)),
        (["beach", 0, "zebra"], (5, 0, 2)),
        ((), ()),
    ],
)
def test_positions_are_taken_from_numpy_and_from_several_parts(tokens, where, expected):
    found = tokens("a zebra on the beach").positions(where, "zebra")
    assert found == expected and all(type(i) is int for i in found)


@pytest.mark.parametrize(
    ("where", "subject", "text"),
    [
        (
            "giraffe",
            None,
            "'giraffe' is not in the prompt 'an elephant', whose tokens are 0:<|startoftext|>  1:an  2:el  3:e",
        ),
        ("ant", None, "'ant' is not in the prompt"),
        ("", None, "'' is not in the prompt"),
        ("subject_lst", "elephant", "'subject_lst' is not in the prompt"),
        ("subject", None, "tokens='subject': the world of 'an elephant' names no subject"),
        ("subject_last", "", "tokens='subject_last': the world of 'an elephant' names no subject"),
        ([3, 40, -33], None, "tokens=40: the text encoder has positions 0 to 31"),
        ([3, -33], None, "tokens=-33: the text encoder has positions 0 to 31"),
        (
            True,
            None,
            "tokens=True: True is a bool; give all, subject, subject_last, after_subject, eos, padding, a word",
        ),
        (1.0, None, "tokens=1.0: 1.0 is a float; give"),
        ([0, 1.5], None, "tokens=1.5: 1.5 is a float; give"),
        (np.array([True, False]), None, "tokens=True: True is a bool; give"),
        (np.array([0.0]), None, "tokens=0.0: 0.0 is a float; give"),
        (None, None, "tokens=None: None is a NoneType; give"),
        ([[0, 1]], None, "tokens=[0, 1]: [0, 1] is a list; give"),
    ],
)
def test_what_is_not_there_shows_the_tokenization(tokens, where, subject, text):
    with pytest.raises(ValueError) as error:
        tokens("an elephant").positions(where, subject)
    assert text in str(error.value)


def test_a_word_that_the_encoder_does_not_reach(tokens):
    with pytest.raises(ValueError, match="'giraffe' stands beyond what the text encoder reads"):
        tokens("a zebra " * 20 + "giraffe").of("giraffe")
    cut = tokens("a zebra " * 14 + "an elephant")  # of the elephant's five tokens one is read
    assert cut.ended and cut.end == 31 and cut.prompt[: cut.read].endswith(" an el")
    with pytest.raises(ValueError, match="'elephant' stands beyond what the text encoder reads"):
        cut.of("elephant")
    full = tokens("a zebra " * 15)
    assert full.end == 31 and full.read == len(full.prompt) and len(full.of("zebra")) == 15


@pytest.mark.parametrize("token", ["<|endoftext|>", "<|startoftext|>"])
def test_special_tokens_inside_a_prompt_are_named(tokens, token):
    with pytest.raises(ValueError) as error:
        tokens(f"a zebra {token} a cow")
    assert f"holds '{token}', which the tokenizer takes for its own special token" in str(error.value)


# Tokenizers of other families.


def test_a_tokenizer_without_a_start_token():
    found = tokenize(sentencepiece(), "a zebra,  in the elephant", length=12)
    assert (
        found.pieces[:8] == ("a", "zebra", ",", "", "in", "the", "elep", "hant") and found.pieces[found.end] == "</s>"
    )
    assert found.ended and found.own == tuple(range(8))
    assert found.of("zebra") == (1,) and found.of("elephant") == (6, 7) and found.of("a") == (0,)
    assert found.positions("eos") == (8,) and found.positions("padding") == (9, 10, 11)
    assert [found.prompt[start:stop] for start, stop in found.spans[:3]] == ["a", "zebra", ","]


def test_a_tokenizer_without_an_end_token():
    found = tokenize(sentencepiece(None), "a zebra in the savanna", length=8)
    assert not found.ended and found.end == 5 and found.positions("padding") == (5, 6, 7)
    assert found.positions("after_subject", "zebra") == (2, 3, 4)
    with pytest.raises(
        ValueError, match="tokens='eos': the tokenizer puts no end token behind 'a zebra in the savanna'"
    ):
        found.positions("eos")
    cut = tokenize(sentencepiece(None), "a zebra in the savanna", length=3)
    assert cut.end == 3 and cut.positions("padding") == () and cut.of("in") == (2,)
    with pytest.raises(ValueError, match="'savanna' stands beyond what the text encoder reads"):
        cut.of("savanna")


def test_the_end_is_found_where_padding_looks_like_it(tokenizer):
    """SD 1 pads with the end token itself, SDXL's second tokenizer with "!", which a prompt may hold."""
    other = CLIPTokenizer.from_pretrained(MENAGERIE / "tokenizer", pad_token="!")
    for each in (tokenizer, other):
        found = tokenize(each, "a zebra! running")
        assert found.end == 5 and found.of("running") == (4,) and found.positions("padding") == tuple(range(6, 32))


def test_tokenizers_that_do_not_tell_places(tokenizer):
    with pytest.raises(ValueError, match="has no limit of its own; give length="):
        tokenize(sentencepiece(), "a zebra")
    left = CLIPTokenizer.from_pretrained(MENAGERIE / "tokenizer", padding_side="left")
    with pytest.raises(ValueError, match="pads on the left and cuts on the right; set its padding_side"):
        tokenize(left, "a zebra")
    with pytest.raises(ValueError, match=r"prompt=\['a zebra'\]: tokens are told of one text at a time"):
        tokenize(tokenizer, ["a zebra"])


# Textual inversion.


@pytest.fixture(scope="module", params=[sd1, sdxl], ids=lambda make: make.__name__)
def inverted(request):
    """A pipeline with a word of three vectors and one of a single vector, in each of its text encoders."""
    torch.manual_seed(0)
    pipeline = request.param()
    for encoder, tokenizer in (("text_encoder", "tokenizer"), ("text_encoder_2", "tokenizer_2")):
        if getattr(pipeline, encoder, None) is not None:
            width = getattr(pipeline, encoder).config.hidden_size
            parts = dict(tokenizer=getattr(pipeline, tokenizer), text_encoder=getattr(pipeline, encoder))
            if tokenizer == "tokenizer_2" and pipeline.tokenizer_2 is pipeline.tokenizer:
                parts["tokenizer"] = pipeline.tokenizer_2 = CLIPTokenizer.from_pretrained(MENAGERIE / "tokenizer")
            pipeline.load_textual_inversion({"<cat>": torch.randn(3, width)}, token="<cat>", **parts)
            pipeline.load_textual_inversion({"<dog>": torch.randn(1, width)}, token="<dog>", **parts)
    return pipeline


def test_a_textual_inversion_is_as_many_tokens_as_it_has_vectors(inverted):
    for name in [name for name in ("tokenizer", "tokenizer_2") if getattr(inverted, name, None) is not None]:
        tokenizer = getattr(inverted, name)
        prompt = "a zebra, <cat> and <dog> next to <cat>, an elephant"
        found = tokens_of(inverted, prompt, name)
        read = tokenizer(
            inverted.maybe_convert_prompt(prompt, tokenizer), padding="max_length", max_length=32
        ).input_ids
        assert list(found.ids) == read and found.prompt == prompt
        assert pieces(found, found.of("<cat>")) == ["<cat>", "<cat>_1", "<cat>_2"] * 2
        assert [len(place) for place in found.places("<cat>")] == [3, 3]
        assert (
            pieces(found, found.of("<dog>")) == ["<dog>"] and "".join(pieces(found, found.of("elephant"))) == "elephant"
        )
        assert pieces(found, found.of("and")) == ["and"] and found.pieces[found.end] == "<|endoftext|>"
        assert found.own == tuple(range(1, found.end))
        plain = tokenize(tokenizer, prompt)  # the tokenizer alone knows one
        assert pieces(plain, plain.of("<cat>")) == ["<cat>"] * 2


def test_a_textual_inversion_that_is_cut_off(inverted):
    found = tokens_of(inverted, "a zebra " * 14 + "<cat>")  # 28 tokens, and room for two
    assert found.pieces[29:31] == ("<cat>", "<cat>_1")
    with pytest.raises(ValueError, match="'<cat>' stands beyond what the text encoder reads"):
        found.of("<cat>")


def test_words_are_replaced_beside_a_textual_inversion(inverted):
    change = replace_words("<cat> and a zebra next to <cat> and a zebra", "zebra", "elephant")
    old, new = (tokens_of(inverted, text) for text in (change.prompt, change.text))
    pairs = change.aligned(old, new, old.own)
    for i, j in pairs:
        assert new.pieces[j] == ("ant" if old.pieces[i] == "zebra" else old.pieces[i])
    back = replace_words("a zebra and <cat>", "<cat>", "a cow")
    old, new = (tokens_of(inverted, text) for text in (back.prompt, back.text))
    assert back.aligned(old, new, old.of("<cat>")) == [(4, 4), (5, 4), (6, 5)]


def test_a_tokenizer_that_the_pipeline_lacks(inverted):
    with pytest.raises(
        ValueError, match="tokenizer='tokenizer_9': the pipeline has no such tokenizer; it has tokenizer"
    ):
        tokens_of(inverted, "a zebra", "tokenizer_9")


# Replacing words.


def test_a_phrase_is_replaced_at_every_place():
    change = replace_words("A zebra, a zebra-like cow and zebras", "zebra", "giraffe")
    assert change.text == "A giraffe, a giraffe-like cow and zebras"
    for (start, stop), (new_start, new_stop) in change.places:
        assert change.prompt[start:stop] == "zebra" and change.text[new_start:new_stop] == "giraffe"
    assert replace_words("a cart and a car", "car", "cow").text == "a cart and a cow"
    with pytest.raises(ValueError, match="'giraffe' is not in the prompt 'a zebra'; name words that it has"):
        replace_words("a zebra", "giraffe", "cow")


def moved(tokens, prompt, phrase, replacement):
    """Pieces of the prompt's positions up to the end, with those that take their part."""
    change = replace_words(prompt, phrase, replacement)
    old, new = tokens(prompt), tokens(change.text)
    return old, new, change.aligned(old, new, range(len(old.ids)))


def test_a_subject_that_stands_twice_is_aligned_place_by_place(tokens):
    old, new, pairs = moved(tokens, "a zebra and a cow and a zebra in a city", "zebra", "elephant")
    assert [(old.pieces[i], new.pieces[j]) for i, j in pairs[: old.end + 1]] == [
        (piece, "ant" if piece == "zebra" else piece) for piece in old.pieces[: old.end + 1]
    ]
    assert [j for i, j in pairs if old.pieces[i] == "zebra"] == [place[-1] for place in new.places("elephant")]
    old, new, pairs = moved(tokens, "an elephant and an elephant, a cow", "elephant", "zebra")
    assert [new.pieces[j] for i, j in pairs[: old.end]] == [
        "<|startoftext|>", *["an", *["zebra"] * 5, "and"], *["an", *["zebra"] * 5, ",", "a", "cow"]
    ]  # fmt: skip
    assert {j for i, j in pairs if i in old.places("elephant")[1]} == set(new.places("zebra")[1])


def test_a_replacement_that_the_prompt_already_holds_is_left_alone(tokens):
    for prompt in ("a giraffe next to a zebra", "a zebra next to a giraffe", "a giraffe, a zebra, a giraffe"):
        old, new, pairs = moved(tokens, prompt, "zebra", "giraffe")
        assert pairs == [(i, i) for i in range(len(old.ids))]
    old, new, pairs = moved(tokens, "an elephant next to a zebra on an elephant", "zebra", "elephant")
    shift = new.end - old.end
    assert shift == 4 and [j - i for i, j in pairs[: old.end + 1]] == [0] * old.of("zebra")[0] + [shift] * (
        old.end + 1 - old.of("zebra")[0]
    )


def test_padding_goes_to_padding(tokens):
    for words in (("zebra", "elephant"), ("zebra", "cow"), ("savanna", "elephant next to an elephant")):
        old, new, pairs = moved(tokens, "a zebra in the savanna", *words)
        assert pairs[0] == (0, 0) and pairs[old.end] == (old.end, new.end)
        for i, j in pairs[old.end + 1 :]:
            assert j > new.end and j == min(i + new.end - old.end, 31)
    _, _, pairs = moved(tokens, "an elephant", "elephant", "cow")
    assert pairs[-1] == (31, 27)


def test_words_that_do_not_correspond_are_refused(tokens):
    long = "a zebra and a zebra and a zebra and a zebra and a zebra and a cow"  # with elephants it is too long
    change = replace_words(long, "zebra", "elephant")
    old, new = tokens(long), tokens(change.text)
    with pytest.raises(ValueError, match=r"do not correspond: 0:<\|startoftext\|>"):
        change.aligned(old, new, old.of("cow"))


CLIP = CLIPTokenizer.from_pretrained(MENAGERIE / "tokenizer")
WORDS = st.sampled_from(["zebra", "giraffe", "elephant", "cow", "red", ",", "next", "zebra-like", "flamingo"])


@given(st.lists(WORDS, max_size=5), st.lists(WORDS, max_size=3), st.sampled_from(["cow", "hydrant", "a flamingo"]))
def test_what_is_not_replaced_stays_itself_and_in_order(before, after, replacement):
    change = replace_words(" ".join([*before, "camel", *after, "camel"]), "camel", replacement)
    old, new = (tokenize(CLIP, text, length=77) for text in (change.prompt, change.text))
    pairs = change.aligned(old, new, range(old.end + 1))
    assert [j for _, j in pairs] == sorted(j for _, j in pairs)
    replaced = old.of("camel")
    for i, j in pairs:
        assert i in replaced or old.ids[i] == new.ids[j]
    spans = [pair[1] for pair in change.places]
    held = [j for j in new.own if any(new.spans[j][0] < stop and start < new.spans[j][1] for start, stop in spans)]
    assert {j for i, j in pairs if i in replaced} <= set(held)
    assert [j for j in range(new.end + 1) if j not in held] == [j for i, j in pairs if i not in replaced]
