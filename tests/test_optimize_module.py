"""`optimize_module`: a module comes back smaller, with the artifact's weights, and can be trained on."""

from __future__ import annotations

from copy import deepcopy
from dataclasses import dataclass, replace
from pathlib import Path
from typing import ClassVar

import numpy as np
import pytest

import lstmopt
from lstmopt.errors import LstmoptError
from lstmopt.passes import BackOff, Export, GrowPrune, Resize, Simplify
from lstmopt.passes.verify import verify_artifact
from lstmopt.pipeline import State
from lstmopt.rnn.execution import run_model
from lstmopt.rnn.files import load_model, save_model
from lstmopt.rnn.groups import unit_groups
from lstmopt.targets import RuntimeTarget, Target

torch = pytest.importorskip("torch")
from torch import nn  # noqa: E402

from lstmopt.bridge.modules import check_single, find_places, marked  # noqa: E402
from lstmopt.passes.simplify import simplify  # noqa: E402
from lstmopt.pipeline.from_torch import _export, _Form  # noqa: E402


@dataclass(frozen=True)
class Write:
    """A stage that writes the model where `Export` does, without measuring anything."""

    name: ClassVar[str] = "write"
    needs: ClassVar[tuple[str, ...]] = ("model",)
    gives: ClassVar[tuple[str, ...]] = ()

    def run(self, state: State) -> State:
        save_model(state.model, state.output / "model.onnx")
        return state


ONE = Target(name="one", runtimes=(RuntimeTarget(runtime="onnxruntime", precisions=("f32",)),))
STAGES = (
    Simplify(),
    Resize(hidden_size=16),
    GrowPrune(density=0.4, steps=12, pattern="unstructured", amp=False),
    Export(3),
)


class Speech(nn.Module):
    """A convolutional front end, two bidirectional layers, normalisations, a linear output."""

    def __init__(self, hidden: int = 96) -> None:
        super().__init__()
        self.front = nn.Conv1d(5, 12, 3, padding=1)
        self.norm = nn.BatchNorm1d(12)
        self.rnn = nn.LSTM(12, hidden, num_layers=2, bidirectional=True, batch_first=True, dropout=0.1)
        self.inner = nn.Linear(2 * hidden, 20)
        self.late = nn.LayerNorm(20)
        self.out = nn.Linear(20, 4, bias=False)

    def forward(self, sound: torch.Tensor) -> torch.Tensor:
        x = torch.relu(self.norm(self.front(sound)))
        y, _ = self.rnn(x.transpose(1, 2))
        return self.out(self.late(torch.relu(self.inner(y))))


class Words(nn.Module):
    """A language model with its states as inputs and outputs."""

    def __init__(self, hidden: int = 96) -> None:
        super().__init__()
        self.table = nn.Embedding(11, 7)
        self.rnn = nn.LSTM(7, hidden)
        self.out = nn.Linear(hidden, 11)

    def forward(self, tokens: torch.Tensor, states: tuple[torch.Tensor, torch.Tensor]) -> object:
        y, after = self.rnn(self.table(tokens), states)
        return self.out(y), after


def settled(module: nn.Module) -> nn.Module:
    """Gives running statistics other values than those that every module begins with."""
    torch.manual_seed(1)
    for each in module.modules():
        if isinstance(each, nn.BatchNorm1d):
            each.running_mean.uniform_(-0.3, 0.3)
            each.running_var.uniform_(0.5, 1.5)
    return module


@pytest.fixture(scope="module")
def speech(tmp_path_factory: pytest.TempPathFactory) -> tuple[nn.Module, nn.Module, Path]:
    torch.manual_seed(0)
    module = settled(Speech())
    rng = np.random.default_rng(0)
    new, artifact = lstmopt.optimize_module(
        module, torch.randn(2, 5, 9), output=tmp_path_factory.mktemp("speech") / "out", stages=STAGES,
        dynamic_axes={"sound": {0: "batch", 2: "sequence"}, "output": {0: "batch", 1: "sequence"}},
        data={"sound": rng.standard_normal((70, 5, 9)).astype(np.float32)}, target=ONE, max_degradation=50.0,
    )  # fmt: skip
    return module, new, artifact


@pytest.mark.deep
def test_sizes_change_and_consumers_with_them(speech: tuple[nn.Module, nn.Module, Path]) -> None:
    old, new, artifact = speech
    assert isinstance(new, Speech) and new is not old
    assert (old.rnn.hidden_size, old.inner.in_features) == (96, 192)
    assert isinstance(new.rnn, nn.LSTM)
    assert (new.rnn.hidden_size, new.rnn.num_layers, new.rnn.bidirectional) == (16, 2, True)
    assert new.rnn.batch_first and new.rnn.dropout == 0.1 and new.training == old.training
    assert new.inner.in_features == 32 and tuple(new.inner.weight.shape) == (20, 32)
    assert new.rnn.weight_ih_l1_reverse.shape == (64, 32)
    assert (artifact / "report.json").is_file() and (artifact / "model.onnx").is_file()


@pytest.mark.deep
def test_outputs_are_the_artifacts(speech: tuple[nn.Module, nn.Module, Path]) -> None:
    old, new, artifact = speech
    graph = load_model(artifact / "model.onnx")
    for seed, (batch, steps) in enumerate(((1, 4), (3, 30))):
        sound = np.random.default_rng(seed).standard_normal((batch, 5, steps)).astype(np.float32)
        with torch.no_grad():
            ours = new.eval()(torch.from_numpy(sound)).numpy()
            before = old.eval()(torch.from_numpy(sound)).numpy()
        truth = run_model(graph, {"sound": sound})["output"]
        np.testing.assert_allclose(ours, truth, atol=1e-5)
        assert np.abs(before - truth).max() > 1e-3


@pytest.mark.deep
def test_training_goes_on_and_keeps_the_zeros(speech: tuple[nn.Module, nn.Module, Path]) -> None:
    _, made, _ = speech
    new = Speech(16)
    again = deepcopy(made).train()
    zeros = {
        name: getattr(again.rnn, name) == 0
        for name in ("weight_ih_l0", "weight_hh_l0", "weight_ih_l1_reverse", "weight_hh_l1")
    }
    share = np.mean([float(mask.float().mean()) for mask in zeros.values()])
    assert 0.4 < share < 0.8
    sound, wanted = torch.randn(4, 5, 9), torch.randn(4, 9, 4)
    optimizer = torch.optim.Adam(again.parameters(), lr=0.01)
    losses = []
    for _ in range(20):
        optimizer.zero_grad()
        loss = nn.functional.mse_loss(again(sound), wanted)
        loss.backward()
        optimizer.step()
        losses.append(float(loss.detach()))
    assert losses[-1] < losses[0]
    for name, mask in zeros.items():
        after = getattr(again.rnn, name)
        assert bool((after[mask] == 0).all())
        assert not torch.equal(after, getattr(made.rnn, name))
    for name in [name for name, _ in Speech(16).rnn.named_parameters()]:
        if nn.utils.parametrize.is_parametrized(again.rnn, name):
            nn.utils.parametrize.remove_parametrizations(again.rnn, name)
    new.load_state_dict(again.state_dict())
    with torch.no_grad():
        torch.testing.assert_close(new.eval()(sound), again.eval()(sound))


@pytest.mark.deep
@pytest.mark.parametrize("keep", [False, True])
def test_states_are_carried(keep: bool, tmp_path: Path) -> None:
    torch.manual_seed(0)
    module = Words()
    example = (torch.randint(0, 11, (3, 2)), (torch.zeros(1, 2, 96), torch.zeros(1, 2, 96)))
    call = dict(
        output=tmp_path / "out", input_names=["tokens", "h_in", "c_in"],
        output_names=["scores", "h_out", "c_out"], target=ONE, max_degradation=50.0,
        dynamic_axes={"tokens": {0: "sequence", 1: "batch"}, "h_in": {1: "batch"}, "c_in": {1: "batch"}},
        data={"tokens": np.random.default_rng(0).integers(0, 11, 2000)},
        stages=(Simplify(), Resize(hidden_size=16, keep_state_shape=keep), Write()),
    )  # fmt: skip
    if keep:
        # The module's LSTM has states of its own size: those that callers know have no form in it.
        with pytest.raises(LstmoptError, match="does not run at the new sizes"):
            lstmopt.optimize_module(module, example, **call)
        return
    new, artifact = lstmopt.optimize_module(module, example, **call)
    graph = load_model(artifact / "model.onnx")
    assert new.rnn.hidden_size == 16 and new.out.in_features == 16
    states = torch.zeros(1, 2, 16), torch.zeros(1, 2, 16)
    feeds = {"h_in": states[0].numpy(), "c_in": states[1].numpy()}
    for step in range(20):
        tokens = torch.randint(0, 11, (3, 2), generator=torch.Generator().manual_seed(step))
        with torch.no_grad():
            scores, states = new(tokens, states)
        truth = run_model(graph, {"tokens": tokens.numpy(), **feeds})
        feeds = {"h_in": truth["h_out"], "c_in": truth["c_out"]}
        np.testing.assert_allclose(scores.numpy(), truth["scores"], atol=1e-4)


class Stubborn(Speech):
    """Its forward knows the size by heart."""

    def forward(self, sound: torch.Tensor) -> torch.Tensor:
        y, _ = self.rnn(self.front(sound).transpose(1, 2))
        return self.out(self.late(self.inner(y.reshape(-1, 192)))).reshape(sound.shape[0], -1, 4)


def run(module: nn.Module, folder: Path, *stages: object) -> tuple[nn.Module, Path]:
    data = {"sound": np.random.default_rng(0).standard_normal((40, 5, 9)).astype(np.float32)}
    return lstmopt.optimize_module(
        module, torch.randn(1, 5, 9), output=folder / "out", stages=stages, data=data, target=ONE,
        max_degradation=50.0,
    )  # fmt: skip


def test_a_forward_that_knows_the_size_is_refused(tmp_path: Path) -> None:
    with pytest.raises(LstmoptError, match="does not run at the new sizes"):
        run(Stubborn(), tmp_path, Simplify(), Resize(hidden_size=16), Write())
    assert (tmp_path / "out" / "model.onnx").is_file()


def test_layers_of_unequal_sizes_are_refused(tmp_path: Path) -> None:
    sizes = {"/rnn/LSTM": 16, "/rnn/LSTM_1": 24}
    with pytest.raises(LstmoptError, match="its layers would have 16, 24 units"):
        run(settled(Speech()), tmp_path, Simplify(), Resize(hidden_size=sizes), Write())


def test_layers_of_one_module_get_one_size(tmp_path: Path) -> None:
    module, path = Speech(40), tmp_path / "speech.onnx"
    torch.onnx.export(
        module.eval(), (torch.randn(1, 5, 9),), str(path), input_names=["sound"], dynamo=False,
        opset_version=17,
    )  # fmt: skip
    model = load_model(path)
    names = ("/rnn/LSTM", "/rnn/LSTM_1")
    assert Resize(scale=0.5).sizes(model)[0] == dict.fromkeys(names, 16)
    free = [group for group in unit_groups(model) if group.pinned is None]
    joined = Resize(together=(names,))
    assert joined._joined(free, free, [16, 24]) == [24, 24]
    pinned = replace(free[1], pinned="a reason")
    assert joined._joined([free[0], pinned], free[:1], [16]) == [40]


@pytest.mark.parametrize(
    ("module", "fault"),
    [
        (nn.Sequential(nn.Linear(5, 4)), "holds no nn.LSTM or nn.GRU"),
        (nn.Sequential(nn.LSTM(5, 8, proj_size=3)), "proj_size=3 has no form"),
    ],
)
def test_what_cannot_be_done_is_said_before_anything_runs(
    module: nn.Module, fault: str, tmp_path: Path
) -> None:
    with pytest.raises(LstmoptError, match=fault):
        lstmopt.optimize_module(module, torch.randn(3, 2, 5), output=tmp_path / "out")
    assert not list(tmp_path.iterdir())


@pytest.mark.deep
def test_a_module_without_changes_comes_back_as_it_is(tmp_path: Path) -> None:
    module = settled(Speech(8))
    new, _ = run(module, tmp_path, Simplify(), Write())
    for (name, one), (other, two) in zip(module.state_dict().items(), new.state_dict().items(), strict=True):
        assert name == other
        torch.testing.assert_close(one, two, rtol=0, atol=0)


def test_marks_tell_all_weights_apart() -> None:
    values = torch.cat([tensor.flatten() for tensor in marked(Speech()).parameters()])
    assert values.unique().numel() > 0.9 * values.numel()


@pytest.mark.deep
def test_the_usual_chain(tmp_path: Path) -> None:
    """Sizes are chosen by measuring; both layers of the module get one."""
    recipe = GrowPrune(steps=20, pattern="unstructured", amp=False)
    data = {"sound": np.random.default_rng(0).standard_normal((60, 5, 9)).astype(np.float32)}
    new, artifact = lstmopt.optimize_module(
        settled(Speech()), torch.randn(1, 5, 9), output=tmp_path / "out", data=data, target=ONE,
        max_degradation=50.0, back_off=BackOff(scales=(0.4,), relaxed=(1.0,), train=recipe),
    )  # fmt: skip
    assert new.rnn.hidden_size < 96 and verify_artifact(artifact, progress=lambda *_: None).passed


class Tied(nn.Module):
    """An embedding that scores the next token, too."""

    def __init__(self) -> None:
        super().__init__()
        self.table = nn.Embedding(11, 24)
        self.rnn = nn.LSTM(24, 24)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.rnn(self.table(x))[0] @ self.table.weight.T


class Called(nn.Module):
    """One layer, called twice."""

    def __init__(self) -> None:
        super().__init__()
        self.rnn = nn.LSTM(6, 6)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.rnn(self.rnn(x)[0])[0]


@pytest.mark.parametrize("kind", [Tied, Called])
def test_what_is_used_twice_is_refused_before_any_training(kind: type[nn.Module], tmp_path: Path) -> None:
    example = torch.zeros(4, 1, dtype=torch.int64) if kind is Tied else torch.zeros(4, 1, 6)
    told: list[str] = []
    with pytest.raises(LstmoptError, match=r"(several places|several times).*trained apart"):
        lstmopt.optimize_module(
            kind(), example, output=tmp_path / "out", progress=lambda text, fraction: told.append(text)
        )
    assert not told and not (tmp_path / "out").exists()


class Shared(nn.Module):
    """What is used twice and has one gradient, or none: a convolution, a product of rows, numbers."""

    def __init__(self) -> None:
        super().__init__()
        self.front = nn.Conv1d(6, 6, 3, padding=1)
        self.rnn = nn.LSTM(6, 8)
        self.last = nn.Linear(8, 8)
        self.register_buffer("mean", torch.randn(6))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.front(self.front((x - self.mean).permute(1, 2, 0))).permute(2, 0, 1) + self.mean
        return self.last(torch.tanh(self.last(self.rnn(x)[0][-1])))


def test_what_has_one_gradient_may_be_used_twice(tmp_path: Path) -> None:
    marks = marked(Shared().eval())
    form = _Form(["x"], ["y"], None)
    _export(marks, (torch.zeros(4, 1, 6),), tmp_path / "marked.onnx", form)
    graph = simplify(load_model(tmp_path / "marked.onnx"))[0]
    places = find_places(marks, graph)
    assert any(len(where) > 1 for where in places.parameters.values())
    check_single(marks, places, graph)
