"""Runs described in TOML."""

import json

import pytest
import torch
from loopscope.models.run_config import RunConfig, load_run_config
from loopscope.sweeps.grid import load_sweep

FILE = """
preset = "demo"
seed = 3
[model]
injection = "concatenation"
[data]
sequence_length = 16
[train]
lr = 0.05
steps = 20
betas = [0.8, 0.9]
"""


def test_a_file_becomes_a_run(tmp_path):
    (tmp_path / "run.toml").write_text(FILE)
    run = load_run_config(tmp_path / "run.toml")
    assert run.train_config().lr == 0.05 and run.train_config().betas == (0.8, 0.9) and run.train_config().seed == 3
    assert run.open_data().sequence_length == 16
    model = run.build_model()
    assert model.config.injection == "concatenation"
    again = run.build_model()
    assert all(torch.equal(a, b) for a, b in zip(model.parameters(), again.parameters(), strict=True))


def test_flags_win_over_the_file(tmp_path):
    (tmp_path / "run.toml").write_text(FILE)
    run = load_run_config(tmp_path / "run.toml").updated(train={"lr": 0.1}, model={"norm": "sandwich"}, seed=5)
    assert (run.train_config().lr, run.train_config().steps, run.seed) == (0.1, 20, 5)
    assert run.build_model().config.norm == "sandwich" and run.build_model().config.injection == "concatenation"


def test_the_description_is_plain_and_complete():
    said = json.loads(json.dumps(RunConfig().describe()))
    assert said["model"]["mean_depth"] == 8 and said["train"]["clip"] == 1.0
    assert said["data"] == {"source": "standard-library", "sequence_length": 0}


def test_files_are_read_as_bytes(tmp_path):
    for i in range(20):
        (tmp_path / f"{i:02}.txt").write_text(f"document {i} " * 20)
    data = RunConfig(data={"source": str(tmp_path)}).open_data()
    assert data.sequence_length == 32 and data.describe()["source"] == str(tmp_path)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("preset = ", "Invalid value"),
        ("speed = 3", "speed: not a key of a run"),
        ("model = 3", r"model: expected a table \[model\]"),
        ("[model]\nwidht = 3", "widht: not a field of LoopedConfig"),
        ("[model]\nwidth = 33", "width: expected a multiple"),
        ("[train]\nlr = -1.0", "lr: expected a positive number"),
        ("[train]\nrate = 1", "rate: not a field of TrainConfig"),
        ("[data]\npath = 'x'", r"path: not a field of \[data\]"),
        ("preset = 'none'", "preset: expected one of demo"),
    ],
)
def test_mistakes_are_named_with_their_file(tmp_path, text, message):
    (tmp_path / "run.toml").write_text(text)
    with pytest.raises(ValueError, match=rf"run\.toml: .*{message}"):
        load_run_config(tmp_path / "run.toml")


def test_text_and_model_must_fit(tmp_path):
    with pytest.raises(ValueError, match="sequence_length: expected at most the model's max_length = 32, found 64"):
        RunConfig(data={"sequence_length": 64}).open_data()
    with pytest.raises(ValueError, match="vocab_size: standard-library has 256 tokens, the model 100"):
        RunConfig(model={"vocab_size": 100}).open_data()


@pytest.mark.parametrize("load", [load_run_config, load_sweep])
@pytest.mark.parametrize(
    ("content", "says"),
    [
        (b"a = " + b"[" * 200_000, "cannot be read as TOML"),
        (b"# " + b"x" * (1 << 20), "larger than 1 MiB"),
        (b"seed = " + b"9" * 5000, "cannot be read as TOML"),
        (b'preset = "\xff"', "cannot be read as TOML"),
        (b"seed =", "cannot be read as TOML"),
    ],
    ids=["deep", "large", "long", "bytes", "broken"],
)
def test_a_hostile_configuration_is_refused_in_one_line(content, says, load, tmp_path):
    (tmp_path / "a.toml").write_bytes(content)
    with pytest.raises(ValueError, match=says) as refused:
        load(tmp_path / "a.toml")
    assert len(str(refused.value).splitlines()) == 1 and "a.toml" in str(refused.value)
