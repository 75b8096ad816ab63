"""Logs of other tools: what they say is read, what they do not say is missing, and hostile ones are one line."""

from __future__ import annotations

import json
import math
import struct
import zlib

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from loopscope.runfile.foreign import table, tensorboard
from loopscope.runfile.foreign.table import LogError, choose, normal
from loopscope.runfile.foreign.wire import crc32c, masked
from loopscope.runfile.open import RunFileError, open_run

LOSS = 2 + 2 * np.exp(-np.arange(60) / 20)


# -- encoders of the tests, written from the formats' descriptions ----------------------------------------------------


def varint(value):
    out = b""
    value &= (1 << 64) - 1
    while value >= 0x80:
        out, value = out + bytes([value & 0x7F | 0x80]), value >> 7
    return out + bytes([value])


def field(number, content):
    if isinstance(content, int):
        return varint(number << 3) + varint(content)
    if isinstance(content, float):
        return varint(number << 3 | 1) + struct.pack("<d", content)
    return varint(number << 3 | 2) + varint(len(content)) + content


def event(step, tag, value, *, tensor=False):
    if tensor:
        number = field(8, field(1, 1) + field(4, struct.pack("<f", value)))
    else:
        number = varint(2 << 3 | 5) + struct.pack("<f", value)
    summary = field(1, field(1, tag.encode()) + number)
    return field(1, 1e9 + step) + field(2, step) + field(5, summary)


def crc(data):
    return struct.pack("<I", int(masked(crc32c(np.frombuffer(data, np.uint8)[None]))[0]))


def event_file(path, events):
    parts = []
    for each in events:
        head = struct.pack("<Q", len(each))
        parts += [head, crc(head), each, crc(each)]
    path.write_bytes(b"".join(parts))
    return path


def wandb_file(path, records):
    out = bytearray(b":W&B\xe1\xbe\x00")
    for record in records:
        left, first = record, True
        while left or first:
            room = 32768 - len(out) % 32768
            if room < 7:
                out += bytes(room)
                continue
            part, left = left[: room - 7], left[room - 7 :]
            kind = (1 if not left else 2) if first else (4 if not left else 3)
            out += struct.pack("<IHB", zlib.crc32(part, zlib.crc32(bytes([kind]))), len(part), kind) + part
            first = False
    path.write_bytes(bytes(out))
    return path


def history(step, **values):
    items = b"".join(field(1, field(2, k.encode()) + field(16, json.dumps(v).encode())) for k, v in values.items())
    return field(2, items + field(1, field(1, b"_step") + field(16, str(step).encode())))


# -- what is read -----------------------------------------------------------------------------------------------------


def trainer_state(folder):
    log = [{"step": s + 1, "loss": v, "grad_norm": 1.0, "learning_rate": 1e-3} for s, v in enumerate(LOSS)]
    log.insert(30, {"step": 30, "eval_loss": 9.0})
    log.append({"step": 60, "train_loss": 99.0, "train_runtime": 1.0})
    (folder / "trainer_state.json").write_text(json.dumps({"global_step": 60, "max_steps": 60, "log_history": log}))
    return folder / "trainer_state.json"


def csv_log(folder):
    rows = "".join(f"{s + 1},{float(v)!r},1e-3,\n{s + 1},,,{v + 1}\n" for s, v in enumerate(LOSS))
    (folder / "metrics.csv").write_text("step,train_loss,lr-AdamW,val_loss\n" + rows)
    return folder / "metrics.csv"


def json_lines(folder):
    lines = (json.dumps({"iter": s + 1, "train": {"loss": v, "lr": 1e-3}, "note": "x"}) for s, v in enumerate(LOSS))
    (folder / "log.jsonl").write_text("\n".join(lines) + "\n")
    return folder / "log.jsonl"


def events(folder):
    tags = [event(s + 1, "Loss/train", v) for s, v in enumerate(LOSS)]
    rates = [event(s + 1, "train/lr", 1e-3, tensor=True) for s in range(60)]  # one tag after the other
    (folder / "tb").mkdir()
    event_file(folder / "tb" / "events.out.tfevents.1.host", [field(1, 1e9) + field(3, b"brain.Event:2"), *tags])
    event_file(folder / "tb" / "events.out.tfevents.2.host", rates)
    return folder / "tb"


def wandb(folder):
    config = field(17, field(1, b"id") + field(4, field(1, field(1, b"lr") + field(16, b"0.001"))))
    rows = [history(s, **{"train/loss": v, "lr": 1e-3, "text": "y" * 1500}) for s, v in enumerate(LOSS)]
    return wandb_file(folder / "run-a.wandb", [config, *rows, field(18, b"")])


@pytest.mark.parametrize("make", [trainer_state, csv_log, json_lines, events, wandb])
def test_each_kind_gives_loss_and_rate_by_step_and_says_that_it_is_a_log(make, tmp_path):
    with open_run(make(tmp_path)) as run:
        np.testing.assert_allclose(run["loss"], LOSS, rtol=1e-6)
        np.testing.assert_allclose(run["lr"], 1e-3, rtol=1e-6)
        assert run["step"].tolist() in (list(range(1, 61)), list(range(60))) and run.state == "finished"
        assert run.log and run.info["log"] == run.log and run["nonfinite"].sum() == 0
        assert run.loops("state_norm").shape == (60, 0) and not len(run.probe_steps) and run.array_names == ()
        assert np.isnan(run["a_bar_radius"]).all() and np.isnan(run["residual_ratio"]).all()


def test_the_settings_of_wandb_are_the_configuration(tmp_path):
    assert open_run(wandb(tmp_path)).info["config"] == {"lr": 0.001}


def test_numbers_that_were_logged_and_are_not_finite_count_and_gaps_do_not(tmp_path):
    (tmp_path / "a.csv").write_text("step,loss,lr\n0,2.0,\n1,nan,1e-3\n2,inf,None\n3,,1e-3\n")
    with open_run(tmp_path / "a.csv") as run:
        assert run["nonfinite"].tolist() == [0, 1, 1, 0] and np.isinf(run["loss"][2]) and np.isnan(run["loss"][3])
    (tmp_path / "b.jsonl").write_text('{"step":0,"loss":NaN}\n{"step":1,"loss":null}\n{"step":2,"loss":1e999,"lr":0}\n')
    with open_run(tmp_path / "b.jsonl") as run:
        assert run["nonfinite"].tolist() == [1, 1]  # a record without any number is no row


def test_a_log_that_was_resumed_goes_on_where_it_went_back_to(tmp_path):
    (tmp_path / "a.csv").write_text("step,loss\n0,5\n1,4\n2,9\n1,3\n2,2\n")
    with open_run(tmp_path / "a.csv") as run:
        assert run["step"].tolist() == [0, 1, 2] and run["loss"].tolist() == [5, 3, 2]


def test_a_log_without_steps_is_counted(tmp_path):
    (tmp_path / "a.tsv").write_text("epoch\tLoss\n1\t3.5\n1\t3.0\n")
    with open_run(tmp_path / "a.tsv") as run:
        assert run["step"].tolist() == [0, 1] and run["loss"].tolist() == [3.5, 3.0]


def test_a_trainer_that_has_not_come_to_its_end_is_interrupted(tmp_path):
    path = trainer_state(tmp_path)
    path.write_text(json.dumps(json.loads(path.read_text()) | {"max_steps": 500}))
    with open_run(path) as run:
        assert run.state == "interrupted" and "step 60 of 500" in run.events[0].message


def test_a_log_that_grows_is_read_again_and_half_a_line_is_not_there_yet(tmp_path):
    path = tmp_path / "a.jsonl"
    path.write_text('{"step":0,"loss":3}\n{"step":1,"lo')
    with open_run(path) as run:
        assert len(run) == 1 and not run.refresh()
        path.write_text('{"step":0,"loss":3}\n{"step":1,"loss":2}\n')
        assert run.refresh() and run["loss"].tolist() == [3, 2]
        path.unlink()
        assert not run.refresh() and len(run) == 2


def test_an_event_file_that_is_being_written_lacks_its_last_record(tmp_path):
    path = event_file(tmp_path / "events.out.tfevents.1", [event(s, "loss", 2.0) for s in range(5)])
    path.write_bytes(path.read_bytes()[:-3])
    assert len(open_run(path)) == 4


@pytest.mark.parametrize(
    ("name", "column"),
    [("train/loss", "loss"), ("Loss/train", "loss"), ("training_loss", "loss"), ("train/CrossEntropyLoss", "loss"),
     ("opt/grad_norm", "grad_norm"), ("l2_norm/grad/global", "grad_norm"), ("optim/total_grad_norm", "grad_norm"),
     ("lr-AdamW", "lr"), ("train/learning_rate", "lr"), ("trainer/global_step", "step"), ("_step", "step")],
)  # fmt: skip
def test_the_names_of_other_tools_are_known(name, column, tmp_path):
    names = [name, "eval/loss", "val_loss"] + ([] if column == "loss" else ["loss"])
    assert choose(tmp_path, names)[column] == name


# -- what is refused --------------------------------------------------------------------------------------------------


def wandb_broken(folder):
    path = wandb(folder)
    content = bytearray(path.read_bytes())
    content[200] ^= 1
    path.write_bytes(content)


REFUSED = [
    ("a.csv", "", "expected a first line"),
    ("a.csv", "step,accuracy\n0,1\n", "no loss under a known name; it has step, accuracy"),
    ("a.csv", "step,eval_loss\n0,1\n", "no loss under a known name"),
    ("a.csv", "step,a/loss,b/loss\n0,1,2\n", "could both be the loss"),
    ("a.csv", "step,loss,loss\n0,1,2\n", "there twice"),
    ("a.csv", "step,loss\n0,2.0\n1,abc\n2,3\n", r"a.csv:3: loss = 'abc' is no number"),
    ("a.csv", "step,loss\n0,1_000\n", r"a.csv:2: loss = '1_000'"),
    ("a.csv", "step,loss\n0,2.0\n1\n2,3\n", r"a.csv:3: 1 cells, expected the 2"),
    ("a.csv", "step,loss\n0.5,2.0\n", r"a.csv:2: step = 0.5 is no whole number"),
    ("a.csv", "step,loss\n1e300,2.0\n", "no whole number"),
    ("a.csv", "step,loss\n-1,2.0\n", "no whole number"),
    ("a.csv", "step,loss\nnan,2.0\n", "no whole number"),
    ("a.csv", "step,loss\n0,\n", "no row of it has a loss"),
    ("a.csv", b"step,loss\n\xff,1\n", "no UTF-8"),
    ("a.csv", 'step,loss\n0,"' + "x" * 200_000 + '"\n1,2\n', "field larger than field limit"),
    ("a.jsonl", '{"step":0,"loss":1}\nnonsense\n{"step":1,"loss":1}\n', r"a.jsonl:2: no JSON"),
    ("a.jsonl", "[1]\n", "expected an object"),
    ("a.jsonl", '{"a":' * 50_000 + "\n{}\n", "no JSON"),
    ("a.jsonl", '{"step":0,"loss":"' + "9" * (1 << 20) + '"}\n', "a line of"),
    ("a.jsonl", '{"step":0,"loss":"::error::x"}\n', "is no number"),
    ("a.jsonl", '{"step":0,"loss":"\\u001b]0;x"}\n', "is no number"),
    ("a.json", "[" * 100_000, "no JSON"),
    ("a.json", '{"a": 1}', "neither a trainer_state.json"),
    ("a.json", '{"log_history": [1]}', "expected objects"),
    ("a.json", '{"log_history": [{"step": 1, "eval_loss": 2}]}', "no loss; set logging_steps"),
    ("a.json", "9" * 5000, "no JSON|neither"),
    ("tfevents", b"", "no event file"),
    ("tfevents", b"x" * 100, "no event file"),
    ("a.wandb", b":W&B\xe1\xbe\x07", "of a version that is not known"),
    ("a.wandb", b":W&B\xe1\xbe\x00" + b"\x01" * 40, "no loss"),
]  # fmt: skip


@pytest.mark.parametrize(("name", "content", "said"), REFUSED)
def test_what_is_no_log_is_refused_in_one_line_that_names_the_place(name, content, said, tmp_path):
    path = tmp_path / name
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    with pytest.raises(RunFileError, match=said) as error:
        open_run(path)
    text = str(error.value)
    assert name in text and len(text) < 1000 and text.isprintable() and "::error" not in text


def test_damage_is_seen_by_its_checksum(tmp_path):
    path = event_file(tmp_path / "events.out.tfevents.1", [event(s, "loss", 2.0) for s in range(5)])
    content = bytearray(path.read_bytes())
    content[-10] ^= 1
    path.write_bytes(content)
    with pytest.raises(LogError, match="record 5 is damaged"):
        open_run(path)
    wandb_broken(tmp_path)
    with pytest.raises(LogError, match="damaged"):
        open_run(tmp_path / "run-a.wandb")


def test_a_row_too_many_and_a_byte_too_many_are_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(table, "MOST_ROWS", 10)
    with pytest.raises(LogError, match="more than 20 lines"):
        open_run(csv_log(tmp_path))
    monkeypatch.setattr(tensorboard, "MOST_NAMES", 3)
    path = event_file(tmp_path / "tfevents", [event(1, f"tag{n}", 1.0) for n in range(9)])
    with pytest.raises(LogError, match="tags"):
        open_run(path)
    with pytest.raises(LogError, match="larger than 0 MiB"):
        table.read_bytes(path, 10)


def test_links_in_circles_pipes_and_folders_of_nothing_are_refused(tmp_path):
    import os

    (tmp_path / "loop.csv").symlink_to(tmp_path / "loop.csv")
    os.mkfifo(tmp_path / "pipe.csv")
    (tmp_path / "folder.csv").mkdir()
    for name in ("loop.csv", "pipe.csv", "folder.csv"):
        with pytest.raises(RunFileError):
            open_run(tmp_path / name)


def test_the_checksum_is_that_of_the_standard():
    assert int(crc32c(np.frombuffer(b"123456789", np.uint8)[None])[0]) == 0xE3069283
    assert crc32c(np.zeros((2, 32), np.uint8)).tolist() == [0x8A9136AA] * 2  # RFC 3720, B.4


def test_names_are_normalised():
    given = (" Train/Grad-Norm ", "metrics/loss", "train")
    assert [normal(name) for name in given] == ["grad_norm", "loss", "train"]


@settings(max_examples=60, deadline=None)
@given(st.sampled_from(["csv", "jsonl", "json", "tfevents", "wandb"]), st.data())
def test_any_bytes_are_a_log_or_one_line(tmp_path_factory, kind, data):
    folder = tmp_path_factory.mktemp("f")
    makers = {"csv": csv_log, "jsonl": json_lines, "json": trainer_state, "tfevents": events, "wandb": wandb}
    made = makers[kind](folder)
    path = made / "events.out.tfevents.1.host" if made.is_dir() else made
    content = bytearray(path.read_bytes())
    for _ in range(data.draw(st.integers(0, 5))):
        at = data.draw(st.integers(0, len(content)))
        end = data.draw(st.integers(at, min(len(content), at + 40)))
        content[at:end] = data.draw(st.binary(max_size=40))
    path.write_bytes(content)
    try:
        with open_run(made) as run:
            assert len(run) and not np.isnan(run["step"]).any() and (np.diff(run["step"]) > 0).all()
            assert math.isfinite(run["nonfinite"].sum())
    except RunFileError as error:
        assert len(str(error).splitlines()) == 1 and len(str(error)) < 1000
