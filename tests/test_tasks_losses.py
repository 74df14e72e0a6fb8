"""The mixed loss against its definition, term by term, with its gradient."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lstmopt.tasks import losses

torch = pytest.importorskip("torch")
F = torch.nn.functional


def by_definition(scores, labels, teacher, scale, alpha, temperature):
    """Cross-entropy and KL of torch's own functions; KL without the teacher's entropy."""
    as_log = {
        "logits": lambda x: F.log_softmax(x, -1),
        "probabilities": lambda x: F.log_softmax(x.clamp_min(1e-12).log(), -1),
        "log-probabilities": lambda x: F.log_softmax(x, -1),
    }[scale]
    logs = as_log(scores).reshape(-1, scores.shape[-1])
    share = 1.0 if labels is None else alpha if teacher is not None else 0.0
    total = torch.zeros((), dtype=scores.dtype)
    if labels is not None:
        total = total + (1 - share) * F.nll_loss(logs, torch.from_numpy(labels).reshape(-1))
    if teacher is not None:
        known = as_log(teacher).reshape(logs.shape)
        truth = F.softmax(known / temperature, -1)
        soft = F.log_softmax(logs / temperature, -1)
        total = total - share * temperature**2 * (truth * soft).sum(-1).mean()
    return total


@settings(max_examples=80, deadline=None, derandomize=True)
@given(
    st.integers(0, 1000),
    st.sampled_from(["logits", "probabilities", "log-probabilities"]),
    st.sampled_from(["both", "labels", "teacher"]),
    st.sampled_from([0.0, 0.3, 1.0]),
    st.sampled_from([1.0, 2.5]),
    st.sampled_from([5, 1 << 20]),
)
def test_value_and_gradient(seed, scale, given_, alpha, temperature, chunk):
    rng = np.random.default_rng(seed)
    shape, classes = (3, 4), int(rng.integers(2, 9))

    def draw():
        x = torch.from_numpy(2 * rng.standard_normal((*shape, classes)))
        made = {"logits": x, "probabilities": x.softmax(-1), "log-probabilities": x.log_softmax(-1)}[scale]
        return made.detach().requires_grad_()

    ours = draw()
    theirs = ours.detach().clone().requires_grad_()
    teacher = None if given_ == "labels" else draw().detach()
    labels = None if given_ == "teacher" else rng.integers(0, classes, shape)
    before, losses.CHUNK = losses.CHUNK, chunk
    try:
        loss = losses.mixed_categorical_loss(ours, labels, teacher, scale, alpha, temperature)
    finally:
        losses.CHUNK = before
    expected = by_definition(theirs, labels, teacher, scale, alpha, temperature)
    assert float(loss.detach()) == pytest.approx(float(expected.detach()), rel=1e-9, abs=1e-12)
    (3 * loss).backward()
    (3 * expected).backward()
    np.testing.assert_allclose(ours.grad.numpy(), theirs.grad.numpy(), rtol=1e-7, atol=1e-12)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_narrow_scores_keep_their_type_and_a_wide_loss(dtype):
    scores = torch.randn(50, 2000, generator=torch.Generator().manual_seed(0)).to(dtype).requires_grad_()
    labels = np.arange(50)
    loss = losses.mixed_categorical_loss(scores, labels, scores.detach(), "logits", 0.5, 1.0)
    loss.backward()
    assert loss.dtype == torch.float32 and scores.grad.dtype == dtype
    exact = by_definition(scores.detach().double(), labels, scores.detach().double(), "logits", 0.5, 1.0)
    assert float(loss.detach()) == pytest.approx(float(exact), rel=1e-5)


def test_nothing_to_learn_from():
    with pytest.raises(ValueError, match="labels or a teacher"):
        losses.mixed_categorical_loss(torch.zeros(2, 3), None, None, "logits", 0.5, 1.0)


def test_no_gradient_is_made_where_none_is_asked_for():
    loss = losses.mixed_categorical_loss(torch.zeros(2, 3), np.array([0, 1]), None, "logits", 0.5, 1.0)
    assert not loss.requires_grad and float(loss) == pytest.approx(np.log(3))
