"""Patterns: legality, budget, determinism, and the best choice against brute force."""

from __future__ import annotations

from itertools import combinations, product

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lstmopt.errors import LstmoptError
from lstmopt.sparsity.patterns import NM, Bank, Block, GateShared, Unstructured, parse_pattern

PATTERNS = st.one_of(
    st.builds(Unstructured, st.booleans()),
    st.builds(
        Bank, st.sampled_from([2, 4, 5, 8]), st.sampled_from(["one", "panel"]),
        st.sampled_from([1, 2, 3, 16]), st.sampled_from([1, 2, 4]),
    ),
    st.builds(
        GateShared, st.sampled_from([2, 4, 8]), st.sampled_from(["one", "panel"]), st.sampled_from([1, 2, 16])
    ),
    st.builds(Block, st.sampled_from([1, 2, 4, 16]), st.sampled_from([1, 2, 3])),
    st.sampled_from([NM(2, 4), NM(1, 4), NM(4, 8), NM(3, 3)]),
)  # fmt: skip


@st.composite
def score_sets(draw):
    rng = np.random.default_rng(draw(st.integers(0, 2**16)))
    levels = draw(st.sampled_from([None, 1, 3]))
    scores = {}
    for name in ("r0", "w0", "w1")[: draw(st.integers(1, 3))]:
        shape = (draw(st.sampled_from([1, 4])), draw(st.integers(1, 9)), draw(st.integers(1, 17)))
        values = np.abs(rng.standard_normal(shape)) if levels is None else rng.integers(0, levels, shape)
        scores[name] = values.astype(np.float32)
    return scores


def count(masks):
    return sum(int(np.count_nonzero(mask)) for mask in masks.values())


def largest_step(pattern, scores):
    """Entries that the pattern keeps or drops together at most."""
    gates = max(array.shape[0] for array in scores.values())
    match pattern:
        case Unstructured():
            return len(scores) if pattern.per_matrix else 1
        case Bank() | GateShared() if pattern.k == "panel":
            return gates * pattern.panel * pattern.step
        case Block():
            return pattern.rows * pattern.cols
        case _:
            return 1


@settings(max_examples=300, deadline=None, derandomize=True)
@given(PATTERNS, score_sets(), st.sampled_from([0.0, 0.0625, 0.1, 0.25, 0.5, 0.9, 1.0]))
def test_masks_are_legal_within_the_budget_and_deterministic(pattern, scores, density):
    masks = pattern.masks(scores, density)
    assert {name: mask.shape for name, mask in masks.items()} == {n: a.shape for n, a in scores.items()}
    assert all(pattern.is_legal(mask) and mask.dtype == np.bool_ for mask in masks.values())
    again = pattern.masks({name: array.copy() for name, array in scores.items()}, density)
    assert all(np.array_equal(masks[name], again[name]) for name in scores)
    total = sum(array.size for array in scores.values())
    budget, kept = int(density * total + 1e-6), count(masks)
    if isinstance(pattern, Bank | GateShared) and pattern.k == "one":
        least = count(pattern.masks(scores, 0.0))
        assert kept <= max(budget, least)
        assert density < 1 or kept == total
        return
    assert kept <= budget
    if isinstance(pattern, NM):
        budget = min(budget, count(pattern.masks(scores, 1.0)))
    assert kept > budget - largest_step(pattern, scores)


@settings(max_examples=100, deadline=None, derandomize=True)
@given(PATTERNS, score_sets())
def test_a_larger_budget_keeps_what_a_smaller_one_kept(pattern, scores):
    previous = pattern.masks(scores, 0.05)
    for density in (0.1, 0.2, 0.4, 0.8):
        masks = pattern.masks(scores, density)
        assert all(np.all(masks[name] >= previous[name]) for name in scores)
        previous = masks


@settings(max_examples=60, deadline=None, derandomize=True)
@given(PATTERNS, st.integers(0, 1000))
def test_an_illegal_mask_is_not_legal(pattern, seed):
    """Where a pattern forbids anything, a random mask that it forbids is found out by brute definition."""
    rng = np.random.default_rng(seed)
    mask = rng.random((4, 6, 10)) < 0.4
    if isinstance(pattern, Unstructured):
        assert pattern.is_legal(mask) and not pattern.is_legal(mask[0])
        return
    assert pattern.is_legal(mask) == by_definition(pattern, mask)


def by_definition(pattern, mask):
    gates, hidden, inputs = mask.shape
    if isinstance(pattern, GateShared):
        same = all(np.array_equal(mask[0], mask[gate]) for gate in range(gates))
        return same and by_definition(pattern.bank, mask[:1])
    if isinstance(pattern, NM):
        return all(
            mask[g, u, start : start + pattern.m].sum() <= pattern.n
            for g, u, start in product(range(gates), range(hidden), range(0, inputs, pattern.m))
        )
    if isinstance(pattern, Block):
        return all(
            len(np.unique(mask[g, r : r + pattern.rows, c : c + pattern.cols])) == 1
            for g in range(gates)
            for r in range(0, hidden, pattern.rows)
            for c in range(0, inputs, pattern.cols)
        )
    counts = {}
    for g, u, start in product(range(gates), range(hidden), range(0, inputs, pattern.width)):
        bank = mask[g, u, start : start + pattern.width]
        if bank.sum() % pattern.step and bank.sum() != bank.size:
            return False
        panel = u // pattern.panel if pattern.k == "panel" else 0
        counts.setdefault((panel, start), set()).add(int(bank.sum()))
    if pattern.k == "panel":
        return all(len(found) == 1 for found in counts.values())
    k = max(max(found) for found in counts.values())
    return all(found == {min(k, inputs - start, pattern.width)} for (_, start), found in counts.items())


def best_by_brute_force(pattern, scores, budget):
    """Largest sum of squares of any legal mask of at most ``budget`` entries."""
    best = 0.0
    for kept in range(budget + 1):
        for places in combinations(range(scores.size), kept):
            mask = np.zeros(scores.size, dtype=bool)
            mask[list(places)] = True
            if pattern.is_legal(mask.reshape(scores.shape)):
                best = max(best, float(np.square(scores.reshape(-1)[mask]).sum()))
    return best


@pytest.mark.parametrize(
    "pattern",
    [
        Unstructured(), NM(1, 2), NM(2, 4), Bank(4, "panel", 1), Bank(2, "panel", 3), Block(2, 2),
        GateShared(4, "panel", 1),
    ],
    ids=str,
)  # fmt: skip
@pytest.mark.parametrize("seed", range(4))
def test_the_choice_is_the_best_one(pattern, seed):
    shape = {GateShared: (2, 1, 4), Block: (1, 2, 6)}.get(type(pattern), (1, 3, 4))
    scores = np.abs(np.random.default_rng(seed).standard_normal(shape))
    for density in (0.25, 0.5):
        mask = pattern.masks({"w": scores}, density)["w"]
        found = float(np.square(scores[mask]).sum())
        assert found == pytest.approx(best_by_brute_force(pattern, scores, int(density * scores.size)))


def test_panel_budget_prefers_the_panels_that_need_it():
    scores = np.full((4, 32, 64), 0.01)
    scores[:, :16] += np.random.default_rng(0).random((4, 16, 64))
    mask = Bank(32).masks({"w": scores}, 0.25)["w"]
    assert np.count_nonzero(mask[:, 16:]) == 0
    assert np.count_nonzero(mask) == scores.size // 4


@pytest.mark.parametrize(
    "text",
    [
        "unstructured", "unstructured:per-matrix", "bank32", "bank64:k1", "bank32:panel8:step2",
        "bank64:k1:step4", "gate-shared64", "gate-shared32:k1", "block16x1", "block8x4", "2:4", "1:8",
    ],
)  # fmt: skip
def test_text_round_trip(text):
    pattern = parse_pattern(text)
    assert str(pattern) == text
    assert parse_pattern(str(pattern)) == pattern


@pytest.mark.parametrize(
    "text", ["", "bank", "bank0", "bank32:k2", "block16", "5:4", "0:4", "dense", "bank32 "]
)
def test_unknown_patterns_are_one_clear_line(text):
    with pytest.raises(LstmoptError, match="unknown"):
        parse_pattern(text)


def test_density_out_of_range():
    with pytest.raises(ValueError, match="density"):
        Unstructured().masks({"w": np.ones((4, 2, 2))}, 1.5)
