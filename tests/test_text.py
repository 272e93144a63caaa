"""Words are found where they stand, however many tokens they are."""

import pytest
from transformers import CLIPTokenizer

from workbench.models import MENAGERIE
from workbench.text import tokenize


@pytest.fixture(scope="module")
def tokens():
    tokenizer = CLIPTokenizer.from_pretrained(MENAGERIE / "tokenizer")
    return lambda prompt: tokenize(tokenizer, prompt)


def test_a_word_is_all_its_tokens_at_all_its_places(tokens):
    found = tokens("An Elephant next to a red  hydrant, not an elephant")
    words = lambda where: "".join(found.pieces[i] for i in where)
    assert words(found.of("elephant")) == "elephantelephant"
    assert words(found.of("red  hydrant")) == "redhydrant" and len(found.of("hydrant")) == 5
    assert found.pieces[found.end] == "<|endoftext|>" and len(found.pieces) == 32


def test_named_positions(tokens):
    found = tokens("a zebra on the beach")
    assert found.positions("subject", "zebra") == found.positions("subject_last", "zebra") == (2,)
    assert found.positions("after_subject", "zebra") == (3, 4, 5)
    assert found.positions("eos") == (6,) and found.positions("padding") == tuple(range(7, 32))
    assert found.positions("all") == tuple(range(32)) and found.positions("the beach") == (4, 5)
    assert found.positions(-1) == (31,) and found.positions([0, 2]) == (0, 2)
    assert tokens("a flamingo").positions("subject_last", "flamingo") == (7,)


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
        ("subject", None, "tokens='subject': the world of 'an elephant' names no subject"),
        ([3, 40, -33], None, "tokens=[40, -33]: the text encoder has positions 0 to 31"),
    ],
)
def test_what_is_not_there_shows_the_tokenization(tokens, where, subject, text):
    with pytest.raises(ValueError) as error:
        tokens("an elephant").positions(where, subject)
    assert text in str(error.value)


def test_a_word_that_the_encoder_does_not_reach(tokens):
    with pytest.raises(ValueError, match="'giraffe' stands beyond what the text encoder reads"):
        tokens("a zebra " * 20 + "giraffe").of("giraffe")
