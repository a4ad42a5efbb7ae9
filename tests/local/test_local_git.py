# SPDX-License-Identifier: Apache-2.0
"""The commit that a run is recorded with."""

import subprocess

from kfloop.pipelines.local.git import git_commit


def git(directory, *arguments):
    identity = ["-c", "user.name=me", "-c", "user.email=me@example.org"]
    command = ["git", *identity, *arguments]
    done = subprocess.run(command, cwd=directory, check=True, capture_output=True, text=True)
    return done.stdout.strip()


def test_a_commit_is_named_and_changes_to_it_are_told(tmp_path):
    assert git_commit(tmp_path) == ""
    git_commit.cache_clear()
    git(tmp_path, "init", "--quiet")
    (tmp_path / "loop.yaml").write_text("name: a\n")
    git(tmp_path, "add", ".")
    git(tmp_path, "commit", "--quiet", "-m", "first")
    commit = git(tmp_path, "rev-parse", "HEAD")
    assert git_commit(tmp_path) == commit
    git_commit.cache_clear()
    (tmp_path / "loop.yaml").write_text("name: b\n")
    assert git_commit(tmp_path) == f"{commit}-dirty"


def test_a_directory_that_is_not_there_has_none(tmp_path):
    assert git_commit(tmp_path / "gone") == ""
