"""The closed-form solver against dense algebra, and the moments that it preserves."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import workbench as wb


@st.composite
def problems(draw):
    """Random keys, values and preserved keys of every proportion: (pair, in), (pair, out), (key, in), and a weight (out, in)."""
    n, p, d, out = (draw(st.integers(low, high)) for low, high in ((1, 9), (0, 9), (1, 8), (1, 6)))
    generator = torch.Generator().manual_seed(draw(st.integers(0, 2**31)))
    normal = lambda *shape: torch.randn(shape, generator=generator, dtype=torch.float64)
    return normal(n, d), normal(n, out), normal(p, d), normal(out, d)


def dense(keys, values, preserved, weight, base, s_e, s_p):
    """W' by the formula, with every matrix formed."""
    system = base + s_e * keys.T @ keys + s_p * preserved.T @ preserved
    right = weight @ base + s_e * values.T @ keys + s_p * (weight @ preserved.T) @ preserved
    return right @ torch.linalg.inv(system)


@settings(max_examples=150, deadline=None)
@given(problems(), st.floats(0.05, 10), st.floats(0.1, 5), st.floats(0, 5), st.booleans())
def test_the_solver_is_the_dense_solution(problem, lam, s_e, s_p, covariance):
    keys, values, preserved, weight = problem
    moments = wb.edit.Moments.of(torch.cat([keys, torch.eye(keys.shape[1])])) if covariance else None
    base = lam * (moments.second if covariance else torch.eye(keys.shape[1], dtype=torch.float64))
    solution = wb.edit.solve(
        keys,
        lam=lam,
        weight=s_e,
        preserved=preserved,
        preserve_weight=s_p,
        moments=moments,
        preservation="covariance" if covariance else "ridge",
    )
    b, a = solution.factors(values - keys @ weight.T)
    expected = dense(keys, values, preserved, weight, base, s_e, s_p)
    assert torch.allclose(weight + b @ a, expected, rtol=1e-7, atol=1e-7)
    assert b.shape[1] == a.shape[0] <= min(len(keys), *weight.shape)


@settings(max_examples=50, deadline=None)
@given(problems(), st.floats(0.01, 1))
def test_one_pair_alone_is_shrunk_as_the_formula_says(problem, lam):
    keys, values, _, weight = (part[:1] if i < 2 else part for i, part in enumerate(problem))
    solution = wb.edit.solve(keys, lam=lam)
    b, a = solution.factors(values - keys @ weight.T)
    square = (keys**2).sum()
    assert torch.allclose(solution.shrinkage, square / (lam + square))
    assert torch.allclose(
        (weight + b @ a) @ keys[0], weight @ keys[0] + square / (lam + square) * (values[0] - weight @ keys[0])
    )


@settings(max_examples=50, deadline=None)
@given(problems())
def test_the_null_space_is_not_touched(problem):
    keys, values, preserved, weight = problem
    preserved = preserved[: keys.shape[1] - 1]
    if not len(preserved):
        return
    solution = wb.edit.solve(keys, lam=0.1, preserved=preserved, preservation="nullspace", retain=1e-6)
    b, a = solution.factors(values - keys @ weight.T)
    assert (b @ a @ preserved.T).abs().max() < 1e-6 * (1 + (b @ a).abs().max())


@settings(max_examples=50, deadline=None)
@given(problems(), st.sampled_from(["ridge", "nullspace"]), st.floats(0.1, 5))
def test_what_is_fixed_stays_exactly(problem, preservation, lam):
    """And all else is as near as it can be: no other change that holds it has a smaller loss."""
    keys, values, preserved, weight = problem
    fixed, d = keys.flip(1)[: max(1, keys.shape[1] // 3)] + 0.5, keys.shape[1]
    kept = preserved[: d // 3]
    if len(fixed) >= d or (preservation == "nullspace" and not len(kept)):
        return
    given_ = dict(lam=lam, preserved=kept, preservation=preservation, fixed=fixed, retain=1e-3)
    b, a = wb.edit.solve(keys, **given_).factors(values - keys @ weight.T)
    assert (fixed @ a.T @ b.T).norm() < 1e-8 * max(1.0, float((b @ a).norm()))

    def loss(change):
        terms = (keys @ (weight + change).T - values).square().sum() + lam * change.square().sum()
        return terms + (kept @ change.T).square().sum() * (preservation == "ridge")

    held = torch.cat([fixed, kept]) if preservation == "nullspace" else fixed
    free = torch.eye(d, dtype=torch.float64) - torch.linalg.pinv(held) @ held
    other = b @ a + 0.01 * torch.randn(weight.shape, generator=torch.Generator().manual_seed(0)).double() @ free
    assert loss(b @ a) <= loss(other) + 1e-9


def test_speed_is_the_published_formula():
    """Equation 13 of arXiv 2503.07392, with all matrices formed."""
    draw = torch.Generator().manual_seed(3)
    normal = lambda *shape: torch.randn(shape, generator=draw, dtype=torch.float64)
    keys, guides, kept, fixed, weight = normal(3, 12), normal(3, 12), normal(5, 12), normal(2, 12), normal(7, 12)
    target, anchor = keys.T @ keys / 3, guides.T @ keys / 3
    strengths, directions = torch.linalg.eigh(kept.T @ kept / 5)
    p = directions[:, strengths < 1e-9] @ directions[:, strengths < 1e-9].T
    eye, c = torch.eye(12, dtype=torch.float64), fixed.T
    m = torch.linalg.inv(target @ p + eye)
    equal = eye - m @ c @ torch.linalg.inv(c.T @ p @ m @ c) @ c.T @ p
    expected = weight @ (anchor - target) @ p @ equal @ m
    given_ = dict(lam=1.0, weight=1 / 3, preserved=kept, preservation="nullspace", retain=1e-4, fixed=fixed)
    b, a = wb.edit.solve(keys, **given_).factors((guides - keys) @ weight.T)
    assert torch.allclose(b @ a, expected, atol=1e-10)
    assert (kept @ (b @ a).T).norm() < 1e-10 and (fixed @ (b @ a).T).norm() < 1e-10


@settings(max_examples=50, deadline=None)
@given(problems())
def test_the_covariance_limit_is_rome(problem):
    """W + (v - W k)(C^-1 k)^T / (k^T C^-1 k), and W' k = v exactly."""
    keys, values, corpus, weight = problem
    k, v = keys[0], values[0]
    moments = wb.edit.Moments.of(torch.cat([corpus, torch.eye(len(k))]))
    b, a = wb.edit.solve(keys[:1], lam=0.0, moments=moments, preservation="covariance").factors((v - weight @ k)[None])
    inverse = torch.linalg.inv(moments.second)
    assert torch.allclose(b @ a, torch.outer(v - weight @ k, inverse @ k) / (k @ inverse @ k), rtol=1e-7, atol=1e-9)
    assert torch.allclose((weight + b @ a) @ k, v, rtol=1e-7, atol=1e-7)
    lam = 1e-9 * (k @ inverse @ k).item()  # small beside what it is added to, also for a short key
    near = wb.edit.solve(keys[:1], lam=lam, moments=moments, preservation="covariance").a
    assert torch.allclose(near, a, rtol=1e-6, atol=1e-6)


def test_moments_merge_save_and_come_back(tmp_path):
    keys = torch.randn(30, 5, dtype=torch.float64)
    parts = wb.edit.Moments.of(keys[:7]) + wb.edit.Moments.of(keys[7:])
    assert torch.allclose(parts.second, keys.T @ keys / 30) and parts.count == 30
    parts.save(tmp_path / "moments.safetensors")
    again = wb.edit.Moments.load(tmp_path / "moments.safetensors")
    assert torch.equal(again.total, parts.total) and again.count == 30 and "30 keys of 5 channels" in repr(again)
    parts.save(tmp_path / "again.safetensors")
    assert (tmp_path / "again.safetensors").read_bytes() == (tmp_path / "moments.safetensors").read_bytes()
    (tmp_path / "other").write_bytes(b"no such thing")
    with pytest.raises(ValueError, match=r"other: .*; give path= of a file that Moments.save wrote"):
        wb.edit.Moments.load(tmp_path / "other")
    with pytest.raises(FileNotFoundError, match=r"nowhere: no such file; give path= of a file that Moments.save wrote"):
        wb.edit.Moments.load(tmp_path / "nowhere")
    with pytest.raises(ValueError, match="moments of 5 and 4 channels do not add"):
        _ = parts + wb.edit.Moments.of(torch.ones(2, 4))


@pytest.mark.parametrize(
    ("total", "count", "text"),
    [
        (torch.ones(2, 3), 1, r"total= of shape \(2, 3\) is no sum of k k\^T; Moments.of\(keys\) makes one"),
        (torch.tensor([[1.0, 2.0], [0.0, 1.0]]), 1, "total= is not symmetric, so no sum"),
        (-torch.eye(2), 1, "is no sum of k k"),
        (torch.full((2, 2), torch.nan), 1, "Moments: total= of shape .* holds 4 numbers that are not finite"),
        (torch.eye(2), 0, "Moments: count=0: give a whole number, at least 1"),
        (torch.eye(2), 1.5, "Moments: count=1.5: give a whole number"),
        ([[1.0]], True, "Moments: count=True: give a whole number"),
    ],
)
def test_what_are_no_moments_is_refused(total, count, text, tmp_path):
    with pytest.raises(ValueError, match=text):
        wb.edit.Moments(total, count)


NAN = torch.tensor([[1.0, float("nan")]])


@pytest.mark.parametrize(
    ("text", "arguments"),
    [
        (
            r"keys= has 1 of 1 rows that are not finite \(condition number nan\); check the model's dtype",
            dict(keys=NAN, lam=1.0),
        ),
        ("preserved= has 1 of 1 rows that are not finite", dict(keys=torch.ones(1, 2), lam=1.0, preserved=NAN)),
        (
            r"2 equations is singular: condition number inf, .*; raise lam=, or leave out",
            dict(keys=torch.ones(2, 3), lam=0.0),
        ),
        (
            r"singular: condition number \d\.\de\+1\d, .*; raise lam=",
            dict(keys=torch.tensor([[1.0, 0], [1, 1e-7]]), lam=0.0),
        ),
        (
            r"3 equations is singular: .*; raise lam= or give more and more varied keys",
            dict(keys=torch.ones(4, 3), lam=0.0),
        ),
        (
            r"singular: condition number inf, .*; give moments of a larger corpus, or moments.floored",
            dict(
                keys=torch.ones(1, 3), lam=1.0, preservation="covariance", moments=wb.edit.Moments.of(torch.ones(1, 3))
            ),
        ),
        (r"keys= has shape \(3,\); give a matrix \(key, in\)", dict(keys=torch.ones(3), lam=1.0)),
        (
            r"preserved= has \(1, 2\) entries, keys \(1, 3\)",
            dict(keys=torch.ones(1, 3), lam=1.0, preserved=torch.ones(1, 2)),
        ),
        (
            r"fixed= has \(1, 2\) entries, keys \(1, 3\)",
            dict(keys=torch.ones(1, 3), lam=1.0, fixed=torch.ones(1, 2)),
        ),
        ("lam=-1: give a finite number, at least 0", dict(keys=torch.ones(1, 3), lam=-1)),
        (
            "preservation='none': may be 'ridge', 'covariance', 'nullspace'",
            dict(keys=torch.ones(1, 3), lam=1, preservation="none"),
        ),
        ('preservation="covariance" needs moments=', dict(keys=torch.ones(1, 3), lam=1, preservation="covariance")),
        (
            "moments= has 2 channels, the keys have 3",
            dict(keys=torch.ones(1, 3), lam=1, moments=wb.edit.Moments.of(torch.ones(1, 2))),
        ),
        (
            'preservation="nullspace" needs preserved= keys or moments=',
            dict(keys=torch.ones(1, 3), lam=1, preservation="nullspace"),
        ),
        (
            "preserved spans all 3 channels, nothing is left to edit; raise retain=0.01",
            dict(keys=torch.ones(1, 3), lam=1, preservation="nullspace", preserved=torch.eye(3)),
        ),
        (
            'fixed= cannot be held with preservation="covariance"',
            dict(
                keys=torch.ones(1, 3),
                lam=1,
                preservation="covariance",
                moments=wb.edit.Moments.of(torch.eye(3)),
                fixed=torch.eye(3)[:1],
            ),
        ),
    ],
)
def test_what_cannot_be_solved_says_why(text, arguments):
    with pytest.raises(ValueError, match=text):
        wb.edit.solve(**arguments)
