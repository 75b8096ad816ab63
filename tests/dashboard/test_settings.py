"""Whatever somebody wrote as `info`: the usual names are understood, nothing fails."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from loopscope.dashboard.settings import Settings, command, settings_of, table
from loopscope.runfile.nested import flat

JSON = st.recursive(
    st.none() | st.booleans() | st.floats() | st.integers() | st.text(max_size=8),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(
            st.sampled_from(["lr", "model", "width", "config", "command", "x"]) | st.text(max_size=3), inner
        )
    ),
    max_leaves=12,
)


@given(st.dictionaries(st.sampled_from(["config", "command", "parameters", "started", "model", "site"]), JSON))
@settings(deadline=None, max_examples=150)
def test_no_info_is_too_odd(info):
    understood = settings_of(info)
    assert isinstance(understood, Settings)
    assert all("\x1b" not in chip for chip in understood.chips())
    assert all(isinstance(value, str) for value in table(info).values())
    assert isinstance(command(info, resume=True), str)


def test_deep_and_huge_settings_are_cut():
    deep: dict = {}
    inner = deep
    for _ in range(500):
        inner["a"] = {}
        inner = inner["a"]
    assert len(list(flat(deep))) == 1
    assert len(table({f"k{i}": i for i in range(5000)})) <= 2000


@pytest.mark.parametrize("names", [("width", "lr"), ("d_model", "learning_rate"), ("hidden_size", "max_lr")])
def test_the_usual_names_are_understood(names):
    settings = settings_of({"config": {"a": {names[0]: 64}, "b": {names[1]: 1e-3}}})
    assert (settings.width, settings.lr) == (64, 1e-3)


def test_a_command_can_be_pasted_and_resumes_once():
    words = ["/usr/bin/loopscope", "train", "--out", "a b;rm -rf.h5", "--resume", "--overwrite"]
    assert command({"command": words}, resume=True) == "loopscope train --out 'a b;rm -rf.h5' --resume"
    assert command({"command": ["python", "x.py"]}, resume=True) == "python x.py"  # not ours: it may not know --resume
