"""Text from files and names: one line, and nothing that a terminal or a CI log obeys."""

from __future__ import annotations

import unicodedata
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from loopscope.runfile.layout import RunFileError
from loopscope.runfile.text import plain


@given(st.text())
def test_any_text_is_one_line_of_visible_characters(text: str) -> None:
    shown = plain(text)
    assert len(shown.splitlines()) <= 1
    assert not {unicodedata.category(letter) for letter in shown} & {"Cc", "Cf", "Cs", "Co", "Cn", "Zl", "Zp"}
    assert not shown.lstrip().startswith("::") or not shown.lstrip()[2:3].isalnum()
    assert plain(shown) == shown
    shown.encode("utf-8")  # lone surrogates, as in the names of files, are escaped too


@pytest.mark.parametrize(
    "text", ["loss rose to 9.5", "ρ(A̅) ≥ 1, Δ → 0", "日本語　名前", "a::b, C:\\runs\\a.h5", "[1, 2] #3 ##"]
)
def test_ordinary_text_stays_as_it_is(text: str) -> None:
    assert plain(text) == text


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("x\n::error::forged", r"x\n::error::forged"),
        ("  ::add-mask::PASS", r"  \x3a:add-mask::PASS"),
        ("wrapped ::stop-commands::token", r"wrapped \x3a:stop-commands::token"),
        ("##[error]forged", r"\x23#[error]forged"),
        ("x ##vso[task.setvariable variable=a]b", r"x \x23#vso[task.setvariable variable=a]b"),
        ("##teamcity[testFailed]", r"\x23#teamcity[testFailed]"),
        ("\x1b]8;;http://x\x1b\\PASS", r"\x1b]8;;http://x\x1b\PASS"),
        ("\x9b31mred", r"\x9b31mred"),
        ("a\r\x85\u2028\u2029b\0", r"a\r\x85\u2028\u2029b\x00"),
        ("\u2066\u202efailed\u2069", r"\u2066\u202efailed\u2069"),
        ("pa\u200bss\ufeff\U000e0041", r"pa\u200bss\ufeff\U000e0041"),
    ],
)
def test_what_would_be_obeyed_is_shown(text: str, shown: str) -> None:
    assert plain(text) == shown


def test_names_that_are_no_text_can_be_printed() -> None:
    assert plain(Path("a\udcff\n.h5")) == r"a\udcff\n.h5"


def test_an_error_of_a_run_file_is_one_line_whatever_its_path() -> None:
    assert str(RunFileError("b\n::error::from a name.h5: no such file")) == r"b\n::error::from a name.h5: no such file"
