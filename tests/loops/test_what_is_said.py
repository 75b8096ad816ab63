"""What a search says of loops that it does not find for certain, or that run again, is so; its advice works."""

from __future__ import annotations

import logging
import sys
from collections.abc import Callable
from pathlib import Path

import loopscope
import pytest
import torch
from loopscope import mark
from loopscope.loops.discovery import discover
from loopscope.loops.site import LoopSiteError
from torch import Tensor, nn

sys.path.insert(0, str(Path(__file__).parent))
from battery import shapes
from battery.shapes import Block, D, V

TOKENS = torch.arange(8).view(2, 4)


class Base(nn.Module):
    """A model of one block; what it does with it is given."""

    def __init__(self, run: Callable[..., Tensor]) -> None:
        super().__init__()
        self.embed, self.block, self.other, self.head = nn.Embedding(V, D), Block(), Block(), nn.Linear(D, V)
        self.run, self.gate = run, nn.Parameter(torch.zeros(D))

    def forward(self, tokens: Tensor) -> Tensor:
        return self.run(self, tokens)


def record(model: nn.Module, path: Path, steps: int = 1) -> loopscope.Run:
    torch.manual_seed(0)
    with loopscope.attach(model, path) as probe:
        for _ in range(steps):
            loss = model(TOKENS).square().mean()
            loss.backward()
            probe.step(loss=loss)
    return loopscope.open_run(path)


def said_of(model: nn.Module) -> str:
    with pytest.raises(LoopSiteError) as refused:
        discover(model, TOKENS)
    return str(refused.value)


def marked_names(text: str) -> list[str]:
    """The variables that a message advises to mark."""
    return [line.split("'")[1] for line in text.splitlines() if line.strip().startswith("It carries")]


@pytest.mark.parametrize(
    ("shape", "names", "passes"),
    [(shapes.Reversible, ["x1", "x2"], ""), (shapes.RungeKutta, ["h"], "12 times (field), 4 in each of 3 passes")],
)
def test_exactly_what_is_carried_is_to_be_marked(shape: type, names: list[str], passes: str) -> None:
    text = said_of(shape())
    assert marked_names(text) == names and passes in text and "'add'" not in text
    if passes:
        assert "site=LoopSite" not in text  # of one call of the field, which is no pass


def test_of_maps_with_coordinates_both_are_named_and_of_a_noisy_step_its_end(tmp_path: Path) -> None:
    with pytest.raises(LoopSiteError) as refused:
        discover(shapes.Flow(), torch.linspace(-1, 1, 50).view(2, 1, 5, 5))
    assert marked_names(str(refused.value)) == ["net", "coords"]

    def denoise(model: Base, tokens: Tensor) -> Tensor:
        given = model.embed(tokens)
        x = torch.randn_like(given)
        for t in range(4):
            made = model.block(x + given)
            x = 0.9 * (x - 0.3 * made)
            if t < 3:
                x = x + 0.1 * torch.randn_like(x)
        return model.head(x)

    text = said_of(Base(denoise))
    assert marked_names(text) == ["x"]
    line = denoise.__code__.co_firstlineno + 7
    assert f"behind {Path(__file__).name}:{line - 1}-{line}" in text


def test_a_sequence_that_grows_is_one_variable() -> None:
    def grow(model: Base, tokens: Tensor) -> Tensor:
        x = model.embed(tokens)
        for _ in range(3):
            x = torch.cat([x, model.block(x)[:, -1:]], 1)
        return model.head(model.block(x))

    assert marked_names(said_of(Base(grow))) == ["x"]


def test_loops_of_one_line_of_code_get_no_line_to_mark() -> None:
    def grouped(model: Base, tokens: Tensor) -> Tensor:
        h = model.embed(tokens)
        for i in range(6):
            h = (model.block, model.other)[i // 3](h)
        return model.head(h)

    text = said_of(Base(grouped))
    assert "site=LoopSite(body='block', after='other')" in text and "The same lines of code run these loops" in text
    assert not marked_names(text)


def twice(model: Base, tokens: Tensor) -> Tensor:
    ends = []
    for part in (tokens, (tokens + 3) % V):
        h = model.embed(part)
        for _ in range(3):
            h = model.block(h)
        ends.append(h.mean(1))
    return ends[0] - ends[1]


def of_two_lengths(model: Base, tokens: Tensor) -> Tensor:
    made = []
    for depth, one in enumerate(tokens[:, None], 2):
        h = model.embed(one)
        for _ in range(depth):
            h = model.block(h)
        made.append(model.head(h))
    return torch.cat(made)


@pytest.mark.parametrize(("run", "depth"), [(twice, 3.0), (of_two_lengths, 2.5)])
def test_a_loop_that_runs_again_from_another_beginning_is_recorded_run_by_run(
    run: Callable[..., Tensor], depth: float, tmp_path: Path
) -> None:
    """Two views of one input, or a loop for each sample of a list: each run has its own h_0."""
    model, entered = Base(run), []
    hook = model.block.register_forward_pre_hook(lambda module, args: entered.append(args[0].detach()))
    with record(model, tmp_path / "a.h5") as recorded:
        assert recorded["depth"].tolist() == [depth] and not recorded.variables
        first = recorded.loops("state_norm")[0, 0]
    hook.remove()
    model(TOKENS)
    count = 3 if run is twice else 2
    starts = torch.cat(
        [entered[-count if run is twice else -3].flatten(0, 1), entered[-5 if run is not twice else -6].flatten(0, 1)]
    )
    assert abs(first - starts.norm(dim=-1).mean().item()) < 1e-5


def test_marks_that_begin_anew_are_told(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    def marks(model: Base, tokens: Tensor) -> Tensor:
        made = []
        for part in (tokens, (tokens + 3) % V):
            h = mark(model.embed(part), "h")
            for _ in range(3):
                h = mark(torch.sigmoid(model.gate) * h + model.block(h), "h")
            made.append(h)
        return model.head(made[0] - made[1])

    assert discover(Base(marks), TOKENS).notes == ("'h' begins anew within the forward: its runs are recorded as one",)
    for shape in shapes.CASES:
        if shape.call is shapes.plain_call and "marked" in shape.name:
            assert not any("anew" in note for note in discover(shape.make(), TOKENS).notes)


def test_values_of_a_loop_whose_state_ends_in_a_sum_are_no_skips() -> None:
    site = discover(shapes.Slots(), TOKENS)
    assert [v.name for v in site.variables] == ["slots"] and not site.notes
    assert loopscope.linearize(shapes.Slots(), TOKENS, num_loops=4).loop is not None


def test_what_a_swap_of_halves_adds_is_not_taken_for_its_state() -> None:
    def swap(model: Base, tokens: Tensor) -> Tensor:
        x1 = x2 = model.embed(tokens)
        for _ in range(4):
            x1, x2 = x2, x1 + model.block(x2)
        return model.head(x1 + x2)

    assert marked_names(said_of(Base(swap))) == ["x2"]


def test_of_the_first_training_forward_it_is_not_said_that_it_was_in_evaluation_mode(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    def none(model: Base, tokens: Tensor) -> Tensor:
        return model.head(model.block(model.embed(tokens)))

    with caplog.at_level(logging.WARNING):
        record(Base(none), tmp_path / "a.h5").close()
    (text,) = [r.getMessage() for r in caplog.records if "the probe waits for one" in r.getMessage()]
    assert "a training forward shows none" in text and "evaluation" not in text


def said_while_waiting(model: nn.Module, path: Path, train: Callable[[nn.Module], Tensor]) -> list[str]:
    with loopscope.attach(model, path) as probe:
        for _ in range(3):
            train(model).backward()
            probe.step(loss=0.0)
    with loopscope.open_run(path) as run:
        return [event.message for event in run.events if event.kind == "loop_awaited"]


def test_of_marks_outside_of_a_forward_it_is_said_where_they_have_to_be(tmp_path: Path) -> None:
    def one_step(model: Base, h: Tensor) -> Tensor:
        return model.block(h)

    def train(model: nn.Module) -> Tensor:
        h = model.embed(TOKENS)
        for _ in range(3):
            h = mark(model(h), "h")
        return model.head(h).sum()

    said = said_while_waiting(Base(one_step), tmp_path / "a.h5", train)
    assert len(said) == 2 and "'h' is marked outside of the forward of Base" in said[1]

    class Step(nn.Module):  # the advice, followed
        def __init__(self, model: nn.Module) -> None:
            super().__init__()
            self.model = model

        def forward(self) -> Tensor:
            return train(self.model)

    with loopscope.attach(step := Step(Base(one_step)), tmp_path / "b.h5") as probe:
        step().backward()
        probe.step(loss=0.0)
    with loopscope.open_run(tmp_path / "b.h5") as run:
        assert run["depth"].tolist() == [3.0]


def test_an_event_ends_in_no_half_word_and_says_where_the_rest_is(tmp_path: Path) -> None:
    model = shapes.TwoInSuccession()
    (said,) = said_while_waiting(model, tmp_path / "a.h5", lambda model: model(TOKENS).sum())
    assert said.endswith("; the log says which, and how to name it")


def over_chunks(model: Base, tokens: Tensor) -> Tensor:
    x = model.embed(tokens)
    h, made = 0 * x[:, :1], []
    for chunk in x.split(1, dim=1):
        h = model.block(h + chunk)
        made.append(h)
    return model.head(torch.cat(made, 1))


def over_positions(model: Base, tokens: Tensor) -> Tensor:
    x = model.embed(tokens)
    h = 0 * x[:, 0]
    for t in range(x.shape[1]):
        h = model.block(mark(h + x[:, t], "h"))
    return model.head(h)


def over_channels(model: Base, tokens: Tensor) -> Tensor:
    """Depth: every pass has another part of the channels added, as a hypernetwork gives it."""
    h = e = model.embed(tokens)
    for part in e.repeat(1, 1, 3).split(D, dim=-1):
        h = model.block(h + part)
    return model.head(h)


def over_signals(model: Base, tokens: Tensor) -> Tensor:
    """Depth: a time signal for each pass, from a table."""
    h, table = model.embed(tokens), torch.arange(3.0 * D).view(3, D)
    for t in range(3):
        h = model.block(h + table[t])
    return model.head(h)


@pytest.mark.parametrize(
    ("run", "is_over_parts"),
    [(over_chunks, True), (over_positions, True), (over_channels, False), (over_signals, False), (twice, False)],
)
def test_a_loop_over_positions_is_named_as_one(run: Callable[..., Tensor], is_over_parts: bool) -> None:
    notes = discover(Base(run), TOKENS).notes
    assert any("goes over positions, chunks or frames, not over depth" in note for note in notes) == is_over_parts


def test_no_shape_of_depth_is_called_one_of_positions() -> None:
    for case in shapes.CASES:
        if case.call is shapes.plain_call and case.site is None:
            told = any("not over depth" in note for note in discover(case.make()).notes)
            assert told == case.name.startswith("Positions"), case.name


def test_of_a_loop_compiled_in_the_forward_it_is_said_that_it_cannot_be_seen(tmp_path: Path, caplog) -> None:
    def inside(model: Base, tokens: Tensor) -> Tensor:
        weight = model.other.up.weight[:D]
        with torch.no_grad():
            start = torch.tensor(0), model.embed(tokens)
            h = torch.while_loop(lambda i, h: i < 3, lambda i, h: (i + 1, torch.tanh(h @ weight)), start)[1]
        return model.head(model.block(h))

    with caplog.at_level(logging.WARNING):
        said_while_waiting(Base(inside), tmp_path / "a.h5", lambda model: model(TOKENS).sum())
    assert "was compiled as it ran" in caplog.text


def test_a_step_under_a_transform_is_not_told_to_be_compiled(tmp_path: Path) -> None:
    def plain(model: Base, tokens: Tensor) -> Tensor:
        h = model.embed(tokens)
        for _ in range(3):
            h = model.block(h)
        return model.head(h)

    torch.compile(lambda x: x + 1, backend="eager")(torch.ones(2))
    model = Base(plain)
    with loopscope.attach(model, tmp_path / "a.h5") as probe:
        for _ in range(2):
            weights = dict(model.named_parameters())
            torch.func.grad(lambda w: torch.func.functional_call(model, w, (TOKENS,)).sum())(weights)
            probe.step(loss=0.0)
    with loopscope.open_run(tmp_path / "a.h5") as run:
        (said,) = [event.message for event in run.events if event.kind == "no_loop"]
    assert "its loop could not be read" in said


def test_a_model_of_a_file_in_which_another_was_compiled_is_looked_at_as_it_trains(tmp_path: Path) -> None:
    other = Base(twice)
    other.compile(backend="aot_eager")
    other(TOKENS).sum().backward()
    assert any(name.startswith("__compiled_fn") for name in globals())
    from loopscope.probes.seeker import _is_compiled

    assert not _is_compiled(Base(twice)) and _is_compiled(other)
