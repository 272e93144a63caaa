"""What people type is taken as they mean it, or refused by name."""

from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
import xarray as xr
from hypothesis import given
from hypothesis import strategies as st

from workbench.inputs import count, seeds, strings, user_path

ANIMALS = ["a zebra", "a cow"]


@pytest.mark.parametrize(
    "value",
    [
        ANIMALS,
        tuple(ANIMALS),
        (text for text in ANIMALS),
        dict.fromkeys(ANIMALS).keys(),
        np.array(ANIMALS),
        pd.Series(ANIMALS),
        xr.DataArray(ANIMALS).values,
    ],
)
def test_several_texts(value):
    found = strings(value, "labels")
    assert found == ("a zebra", "a cow") and all(type(text) is str for text in found)


def test_a_string_is_one_text():
    assert strings("winter", "positive") == ("winter",) and strings("", "negative") == ("",)
    assert strings(np.str_("winter"), "positive") == ("winter",)
    assert strings([], "preserve", least=0) == ()


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (None, "preserve=None: give a text, or a list of texts such as"),
        (3, "preserve=3: give a text"),
        (b"zebra", "preserve=b'zebra': give a text"),
        ({"zebra"}, "preserve={'zebra'}: give a text"),
        ({"zebra": "giraffe"}, "preserve={'zebra': 'giraffe'}: give a text"),
        (["zebra", 3.5], "preserve holds 3.5, a float: give a text"),
        ([["zebra"]], "preserve holds ['zebra'], a list: give a text"),
        (pd.Series(["zebra", None]), "preserve holds"),
        ([], "preserve holds 0 texts, and needs at least 1"),
    ],
)
def test_what_is_no_text_is_refused_by_name(value, text):
    with pytest.raises(ValueError) as error:
        strings(value, "preserve")
    assert text in str(error.value)


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        (3, (3,)),
        (np.int64(3), (3,)),
        (np.uint8(200), (200,)),
        (np.array(7), (7,)),
        (torch.tensor(7), (7,)),
        (range(3), (0, 1, 2)),
        ([5, np.int32(1)], (5, 1)),
        ([torch.tensor(5), 1], (5, 1)),
        (np.arange(3), (0, 1, 2)),
        (torch.arange(3), (0, 1, 2)),
        (pd.Series([4, 2]), (4, 2)),
        (xr.DataArray([4, 2]), (4, 2)),
        ((i for i in (1, 0)), (1, 0)),
        ([-1, 2**32], (-1, 2**32)),
        ([2**63 - 1, -(2**63)], (2**63 - 1, -(2**63))),
    ],
)
def test_seeds_are_plain_integers(value, expected):
    found = seeds(value)
    assert found == expected and all(type(seed) is int for seed in found)
    for seed in found:
        torch.Generator().manual_seed(seed)
    assert np.array(found).dtype == np.int64


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (True, "seeds=True: True is a bool; give a whole number, or several, such as seeds=3"),
        ([0, True], "seeds=[0, True]: True is a bool"),
        (np.array([True]), "True is a bool"),
        (3.0, "seeds=3.0: give a whole number"),
        ([0, 1.5], "seeds=[0, 1.5]: 1.5 is a float"),
        (np.array([0.0, 1.0]), "seeds=array([0., 1.]): 0.0 is a float"),
        (np.array([[0, 1]]), "seeds=array([[0, 1]]): [0, 1] is a list"),
        ("0", "seeds='0': give a whole number"),
        (["0"], "seeds=['0']: '0' is a str"),
        (None, "seeds=None: give a whole number"),
        ({0, 1}, "seeds={0, 1}: give a whole number"),
        ({0: 1}, "seeds={0: 1}: give a whole number"),
        ([], "seeds=[] holds no seed"),
        (range(0), "seeds=range(0, 0) holds no seed"),
        ([3, 1, 3], "seeds holds 3 more than once, which gives equal images: name each seed once"),
        ([0, np.int64(0)], "seeds holds 0 more than once"),
        (2**63, f"seeds holds {2**63}: seeds go from -2**63 to 2**63 - 1"),
        ([-(2**63) - 1], f"seeds holds {-(2**63) - 1}: seeds go from"),
    ],
)
def test_what_is_no_seed_is_refused_by_name(value, text):
    with pytest.raises(ValueError) as error:
        seeds(value)
    assert text in str(error.value)


@given(st.lists(st.integers(-(2**63), 2**63 - 1), min_size=1, unique=True))
def test_any_different_seeds_are_taken_in_their_order(values):
    assert list(seeds(values)) == values == list(seeds(np.array(values)))


@given(st.one_of(st.none(), st.booleans(), st.floats(), st.text(), st.binary(), st.lists(st.floats(), min_size=1)))
def test_no_other_value_passes_as_a_seed(value):
    with pytest.raises(ValueError, match="^seeds"):
        seeds(value)


def test_counts():
    assert count(4, "num_inference_steps") == count(np.int64(4), "num_inference_steps") == 4
    assert count(0, "inner_steps", least=0) == 0
    for value, text in (
        (0, "num_inference_steps=0: give a whole number, at least 1"),
        (-3, "num_inference_steps=-3: give"),
        (1.5, "num_inference_steps=1.5: 1.5 is a float; give"),
        (4.0, "num_inference_steps=4.0: 4.0 is a float; give"),
        (True, "num_inference_steps=True: True is a bool; give"),
        ("4", "num_inference_steps='4': '4' is a str; give"),
        (None, "num_inference_steps=None: None is a NoneType; give"),
    ):
        with pytest.raises(ValueError) as error:
            count(value, "num_inference_steps")
        assert str(error.value).startswith(text)


def test_the_home_folder(monkeypatch, tmp_path):
    monkeypatch.setenv("HOME", str(tmp_path))
    assert user_path("~/runs", "folder") == user_path(Path("~/runs"), "folder") == tmp_path / "runs"
    assert user_path("runs/~", "folder") == Path("runs/~")
    with pytest.raises(ValueError, match="folder=' ' is empty: give the path"):
        user_path(" ", "folder")
    with pytest.raises(ValueError, match="folder=3: give the path of a file or folder, as a text or a pathlib.Path"):
        user_path(3, "folder")
