"""The schema: what is right comes back in one form, everything else is refused with its name, also at random."""

import json
from base64 import b64encode

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from workbench import schema

NAN, INF = float("nan"), float("inf")


def told(check, *arguments, **settings) -> str:
    with pytest.raises(ValueError) as error:
        check(*arguments, **settings)
    return str(error.value)


@pytest.mark.parametrize(
    ("check", "value", "settings", "expected"),
    [
        (schema.number, 2, {}, 2.0),
        (schema.number, np.float32(0.5), {"least": 0.5, "most": 0.5}, 0.5),
        (schema.number, torch.tensor(3), {"above": 2}, 3.0),
        (schema.whole, np.int64(4), {"least": 4, "most": 4}, 4),
        (schema.whole, torch.tensor(7), {}, 7),
        (schema.wholes, 3, {}, (3,)),
        (schema.wholes, np.arange(3), {}, (0, 1, 2)),
        (schema.wholes, range(-2, 0), {}, (-2, -1)),
        (schema.wholes, torch.tensor([5]), {}, (5,)),
        (schema.text, "a zebra", {}, "a zebra"),
        (schema.text, "", {"empty": True}, ""),
        (schema.choice, "both", {"options": ("cond", "both")}, "both"),
        (schema.site_name, "unet.mid.cross.k", {}, "unet.mid.cross.k"),
        (schema.site_names, "unet.*.cross.{k,v}", {}, ("unet.*.cross.{k,v}",)),
        (schema.site_names, ["a", "b", "a"], {}, ("a", "b")),
        (schema.sha256, "0" * 64, {}, "0" * 64),
    ],
)
def test_what_is_right_comes_back_in_one_form(check, value, settings, expected):
    found = check(value, "x", **settings)
    assert found == expected and type(found) is type(expected)


@pytest.mark.parametrize(
    ("check", "value", "settings", "error"),
    [
        (schema.number, NAN, {}, "sigma=nan: give a finite number"),
        (schema.number, -INF, {}, "sigma=-inf: give a finite number"),
        (schema.number, True, {}, "sigma=True: give a finite number"),
        (schema.number, "2", {}, "sigma='2': give a finite number"),
        (schema.number, None, {}, "sigma=None"),
        (schema.number, 1j, {}, "sigma=1j"),
        (schema.number, torch.ones(2), {}, "give a finite number"),
        (schema.number, -0.1, {"least": 0}, "sigma=-0.1: give a finite number, at least 0"),
        (schema.number, 0, {"above": 0, "most": 1}, "sigma=0: give a finite number, above 0 and at most 1"),
        (schema.number, 2, {"above": 0, "most": 1}, "sigma=2: give a finite number, above 0 and at most 1"),
        (schema.whole, 1.0, {}, "sigma=1.0: give a whole number"),
        (schema.whole, False, {}, "sigma=False: give a whole number"),
        (schema.whole, -1, {"least": 0}, "sigma=-1: give a whole number, at least 0"),
        (schema.whole, 9, {"least": 0, "most": 8}, "sigma=9: give a whole number, at least 0 and at most 8"),
        (schema.wholes, [0, 1.5], {}, "sigma=1.5: give a whole number"),
        (schema.wholes, "12", {}, "sigma='12': give a whole number, or a list of them"),
        (schema.wholes, {1}, {}, "sigma={1}: give a whole number, or a list of them"),
        (schema.wholes, [], {}, "sigma=[] holds none: give at least one whole number, or leave it out"),
        (schema.text, " ", {}, "sigma=' ': give a text that says something"),
        (schema.text, 3, {"empty": True}, "sigma=3: give a text"),
        (schema.choice, "all", {"options": ("cond", "both")}, "sigma='all': may be 'cond', 'both'"),
        (schema.site_name, "unet.*", {}, "sigma='unet.*': give a site's name as model.sites shows it"),
        (schema.site_name, "unet.{a,b}", {}, "a glob names none"),
        (schema.site_name, "x" * 2000, {}, "give a site's name"),
        (schema.site_names, [], {}, "sigma=[] names nothing: give names or globs of sites"),
        (schema.site_names, [""], {}, "names nothing"),
        (schema.site_names, 3, {}, "sigma=3: give names or globs"),
        (schema.site_names, ["a", 3], {}, "sigma holds 3, a int"),
        (schema.site_names, "{a,b}" * 13, {}, "stand for more than 4096 globs; write fewer braces, or a *"),
        (schema.sha256, "0" * 63, {}, "give a SHA-256, 64 digits"),
        (schema.sha256, 7, {}, "give a SHA-256"),
    ],
)
def test_what_is_wrong_is_named_with_what_is_expected(check, value, settings, error):
    assert error in told(check, value, "sigma", **settings)


def test_braces_stand_for_globs():
    assert schema.without_braces("a.{b,c}.{d,e}") == ["a.b.d", "a.b.e", "a.c.d", "a.c.e"]
    assert schema.without_braces("a{b{c,d},e}") == ["abc", "ae", "abd"]
    assert schema.without_braces("plain.*") == ["plain.*"] and schema.without_braces("{a,a}") == ["a"]
    assert len(schema.without_braces("{a,b}" * 12)) == 4096
    assert "a glob of 5001 characters" in told(schema.without_braces, "a" * 5001)


@pytest.mark.parametrize(
    ("value", "settings", "error"),
    [
        ([[1.0, NAN]], {}, "b= of shape (1, 2) holds 1 numbers that are not finite in torch.float32"),
        ([1e300], {}, "holds 1 numbers that are not finite in torch.float32"),
        ([], {}, "b= has shape (0,): give numbers, at least one"),
        ([1.0], {"axes": ("out", "rank")}, "b= has shape (1,): give numbers (out, rank), at least one"),
        (
            np.ones((2, 3)),
            {"axes": ("out", "rank"), "sizes": {"rank": 4}},
            "b= has shape (out, rank) = (2, 3), rank is to be 4, not 3",
        ),
        (np.ones(9), {"most": 8}, "which is 9 numbers: at most 8 are read"),
        (["zebra"], {}, "b=['zebra']: give an array of numbers"),
        ("12", {}, "b='12': give an array of numbers"),
        ([[1], [1, 2]], {}, "give an array of numbers"),
        (torch.ones(2, dtype=torch.complex64), {}, "b= has shape (2,): give numbers"),
    ],
)
def test_arrays_are_finite_and_of_the_declared_axes(value, settings, error):
    assert error in told(schema.array, value, "b", **settings)


def test_an_array_is_a_tensor_of_its_own():
    mine = torch.ones(2, 3, requires_grad=True)
    found = schema.array(mine.T, "b", axes=("in", "out"), sizes={"in": 3}, dtype=torch.float64)
    assert found.dtype == torch.float64 and found.is_contiguous() and not found.requires_grad and found.shape == (3, 2)
    found[0, 0] = 7
    assert mine[0, 0] == 1
    assert schema.array([1, 2], "b").tolist() == [1.0, 2.0]


def test_arrays_travel_as_base64():
    values = np.arange(6, dtype="<f4").reshape(2, 3)
    data = b64encode(values.tobytes()).decode()
    assert torch.equal(schema.array_of_base64([2, 3], data, "direction"), torch.from_numpy(values))
    for shape, content, error in (
        ([2, 2], data, "direction: 24 bytes, but shape (2, 2) needs 16"),
        ([2, 3], "!" + data[1:], "direction: its data is no base64"),
        ([2, 1.5], data, "direction: length of an axis=1.5: give a whole number, at least 0"),
        ([-1, 3], data, "direction: length of an axis=-1"),
        ([2**20, 2**20], data, "at most 268435456 are read"),
        ([1], b64encode(np.float32(NAN).tobytes()).decode(), "holds 1 numbers that are not finite"),
    ):
        assert error in told(schema.array_of_base64, shape, content, "direction")


@pytest.mark.parametrize(
    ("text", "error"),
    [
        ("", "World.from_json: '' is not JSON as it should be"),
        ("[1,", "is not JSON as it should be"),
        ('{"a": 1, "a": 2}', "the key 'a' stands twice"),
        ("[NaN]", "NaN is no number"),
        ("[-Infinity]", "-Infinity is no number"),
        ("[" * 65 + "]" * 65, "JSON of more than 64 levels"),
        ("[" * 10**5 + "]" * 10**5, "JSON of more than 64 levels"),
        (b"{}", "is a bytes; give a JSON text"),
        (None, "is a NoneType; give a JSON text"),
    ],
)
def test_json_is_read_within_limits(text, error):
    assert error in told(schema.parsed, text, "World.from_json")


def test_json_up_to_the_limits_is_read(monkeypatch):
    assert schema.parsed('{"a": [1, 2.5, null, "b"]}', "x") == {"a": [1, 2.5, None, "b"]}
    assert schema.parsed("[" * 64 + "]" * 64, "x")
    monkeypatch.setattr(schema, "LONGEST_JSON", 5)
    assert schema.parsed("[1,2]", "x") == [1, 2]
    assert "JSON of 6 characters; at most 5 are read" in told(schema.parsed, "[1,22]", "x")


def test_values_are_brought_into_what_json_holds():
    given_ = {"a": (1, np.float32(0.5)), "b": torch.tensor([1, 2]), "c": None, "d": np.bool_(True)}
    assert schema.plain(given_, "provenance") == {"a": [1, 0.5], "b": [1, 2], "c": None, "d": True}
    assert "provenance=nan: give what JSON holds" in told(schema.plain, NAN, "provenance")
    assert "object is none of them" in told(schema.plain, object(), "provenance")
    round_ = []
    round_.append(round_)
    assert "provenance=[[...]]: give what JSON holds" in told(schema.plain, round_, "provenance")


def test_objects_have_their_keys_and_no_others():
    assert schema.fields({"a": 1, "c": 2}, "an edit", ["a"], ["b", "c"]) == {"a": 1, "c": 2}
    assert (
        told(schema.fields, {"b": 1}, "an edit", ["a"], ["c"])
        == "an edit lacks 'a' and has an unknown 'b'; its keys are a, c"
    )
    assert "an edit: [1] is a list; expected an object with a" in told(schema.fields, [1], "an edit", ["a"])


ANYTHING = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5) | st.binary(max_size=5),
    lambda inner: (
        st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner, max_size=3) | st.tuples(inner)
    ),
    max_leaves=6,
)
CHECKS = [
    schema.text,
    schema.number,
    schema.whole,
    schema.wholes,
    schema.site_name,
    schema.site_names,
    schema.array,
    schema.sha256,
    schema.parsed,
    schema.plain,
    lambda value, argument: schema.choice(value, argument, ("a", "b")),
    lambda value, argument: schema.fields(value, argument, ["a"]),
]


@settings(max_examples=400, deadline=None)
@given(ANYTHING, st.sampled_from(CHECKS))
def test_anything_is_taken_or_refused_in_words(value, check):
    try:
        check(value, "argument")
    except ValueError as error:
        assert (str(error) and "argument" in str(error)) or "glob" in str(error)


@settings(max_examples=100, deadline=None)
@given(ANYTHING)
def test_what_json_can_hold_comes_back_equal(value):
    try:
        found = schema.plain(value, "value")
    except ValueError:
        return
    assert schema.parsed(json.dumps(found), "value") == found
