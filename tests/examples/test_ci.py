"""The recipes for other people's CI: the shell one is run, the workflow's commands are held to ours."""

from __future__ import annotations

import os
import re
import shlex
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import typer
import yaml
from support import Made

from coreproof.cli import app

EXAMPLES = Path(__file__).parents[2] / "examples"
WORKFLOW = EXAMPLES / "github-workflow.yml"


def run_recipe(made: Made, build: Path, **environment: str) -> subprocess.CompletedProcess[str]:
    """The shell recipe, with this environment's coreproof on the path."""
    path = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
    return subprocess.run(
        ["sh", EXAMPLES / "ci.sh", made.model, made.checkpoint, build],
        env={**os.environ, "PATH": path, "OMP_NUM_THREADS": "1", **environment},
        capture_output=True,
        text=True,
        check=False,
    )


def test_the_shell_recipe_runs(shared_filter: Made, tmp_path: Path) -> None:
    ended = run_recipe(shared_filter, tmp_path / "build")
    assert ended.returncode == 0, ended.stderr
    for said in ("identical: all ", "same: 2 weights of ", "pass: 2 of 2 packages", "measured again"):
        assert said in ended.stdout
    assert re.search(r"^(\d+) of \1 caught$", ended.stdout, re.MULTILINE)
    again = run_recipe(shared_filter, tmp_path / "build", EXPECT="0" * 64)
    assert again.returncode == 1
    assert "pin coreproof.json: has sha256 " in again.stdout
    assert "identical" not in again.stdout


def commands() -> list[list[str]]:
    """Every call of coreproof in the workflow and in the shell recipe."""
    workflow: dict[str, Any] = yaml.safe_load(WORKFLOW.read_text())
    steps = [step for job in workflow["jobs"].values() for step in job["steps"]]
    lines = [line for step in steps for line in step.get("run", "").splitlines()]
    lines += (EXAMPLES / "ci.sh").read_text().splitlines()
    return [shlex.split(line) for line in map(str.strip, lines) if line.startswith("coreproof ")]


@pytest.mark.parametrize("command", commands(), ids=" ".join)
def test_a_command_is_a_real_one_with_real_options(command: list[str]) -> None:
    group = typer.main.get_command(app)
    assert isinstance(group, typer.core.TyperGroup)
    known = group.commands[command[1]]
    options = {name for parameter in known.params for name in (*parameter.opts, *parameter.secondary_opts)}
    given = [word for word in command if word.startswith("--")]
    assert given
    assert set(given) <= options


def test_the_workflow_is_whole() -> None:
    workflow = yaml.safe_load(WORKFLOW.read_text())
    assert list(workflow["jobs"]) == ["judge", "mac"]
    assert workflow["permissions"] == {"contents": "read"}
    for job in workflow["jobs"].values():
        assert job["timeout-minutes"] <= 60
        for step in job["steps"]:
            assert ("uses" in step) != ("run" in step)
            assert "uses" not in step or re.fullmatch(r"actions/[a-z-]+@v\d+", step["uses"])
    judge, mac = (" ".join(s.get("run", "") for s in workflow["jobs"][j]["steps"]) for j in ("judge", "mac"))
    for needed in ("coreproof export", "coreproof verify", "coreproof validate", "--controls"):
        assert needed in judge
    assert "--backend coreml --measure" in mac
    assert "inputs.mac" in workflow["jobs"]["mac"]["if"]
