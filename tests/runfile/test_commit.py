"""The commit that is checked out, as git itself says it."""

from __future__ import annotations

import subprocess

import pytest
from loopscope.runfile.commit import commit_of


@pytest.fixture
def repository(tmp_path):
    def git(*words, where=tmp_path):
        done = subprocess.run(
            ["git", "-c", "user.name=a", "-c", "user.email=a@b", *words], cwd=where, capture_output=True, text=True
        )
        return done.stdout.strip()

    git("init", "-q", "-b", "main")
    git("commit", "-q", "--allow-empty", "-m", "one")
    return tmp_path, git


def test_a_branch_a_detached_head_packed_references_and_a_worktree(repository):
    folder, git = repository
    said = git("rev-parse", "HEAD")
    (folder / "deep" / "er").mkdir(parents=True)
    assert len(said) == 40 and commit_of(folder) == commit_of(folder / "deep" / "er") == said
    git("pack-refs", "--all")
    assert commit_of(folder) == said
    git("worktree", "add", "-q", "-b", "other", str(folder / "w"))
    assert commit_of(folder / "w") == said
    git("checkout", "-q", "--detach")
    assert commit_of(folder) == said


def test_what_is_no_repository_or_damaged_says_nothing(tmp_path):
    (tmp_path / ".git").mkdir()
    assert commit_of(tmp_path) == ""
    (tmp_path / ".git" / "HEAD").write_text("ref: refs/heads/none\n")
    assert commit_of(tmp_path) == ""
    (tmp_path / ".git" / "HEAD").write_bytes(b"\xff\x00")
    assert commit_of(tmp_path) == ""
