"""The ``coreproof`` command as a whole: help, versions and how it ends."""

from __future__ import annotations

from pathlib import Path

import pytest
from support import Cli

import coreproof

COMMANDS = {
    "export": "Turn a checkpoint into Core ML packages",
    "synth": "Write a synthetic checkpoint",
    "reference": "Compute the expected tensors with the official implementation",
    "verify": "Re-export a build from its checkpoint, compare every byte and explain",
    "validate": "Run a build's packages and judge them",
    "compare": "Judge one package against reference tensors of your own",
    "models": "Write MODELS.md from recorded receipts",
    "run": "Run a package once on given inputs, with no Mac",
    "inspect": "Show a package's contract",
    "diff": "Say whether two models are the same program",
    "publish": "Publish a build with its proof to a Hugging Face model repository",
    "fetch": "Download a published build and check every byte",
    "backends": "List the ways to run a package",
}


def test_every_command_is_listed_with_what_it_does(cli: Cli) -> None:
    ended = cli("--help")
    assert ended.status == 0
    for name, what in COMMANDS.items():
        assert any(line.split()[1:2] == [name] and what in line for line in ended.out.splitlines()), name


@pytest.mark.parametrize(("command", "what"), COMMANDS.items())
def test_help_of_a_command(command: str, what: str, cli: Cli) -> None:
    for option in ("--help", "-h"):
        ended = cli(command, option)
        assert (ended.status, ended.err) == (0, "")
        assert what in ended.out
        assert f" {command} [" in ended.out.splitlines()[1]


def test_without_arguments_there_is_help(cli: Cli) -> None:
    ended = cli()
    assert ended.status in (0, 2)
    assert "Usage:" in ended.out + ended.err


def test_version(cli: Cli) -> None:
    ended = cli("--version")
    assert (ended.status, ended.out) == (0, f"{coreproof.__version__}\n")


@pytest.mark.parametrize(
    "arguments",
    [("exprot",), ("export",), ("export", "minilm", "--colour"), ("synth", "minilm", "--seed", "-1")],
)
def test_wrong_use_ends_with_2(arguments: tuple[str, ...], cli: Cli) -> None:
    ended = cli(*arguments)
    assert (ended.status, ended.out) == (2, "")
    assert "Error" in ended.err
    assert "Traceback" not in ended.err


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (
            ("export", "maxilm"),
            "no model named 'maxilm'; give one of minilm, mrt2, styletts2, tangoflux, or a folder with a recipe.py",
        ),
        (
            ("export", "."),
            ".: no recipe.py in that folder; give one of minilm, mrt2, styletts2, tangoflux, or a folder with a "
            "recipe.py",
        ),
        (("synth", "minilm", "--size", "medium"), "--size medium: choose small or full"),
        (("validate", "."), ".: not a coreproof build, it has no coreproof.json"),
    ],
)
def test_errors_are_one_sentence(
    arguments: tuple[str, ...], message: str, cli: Cli, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    ended = cli(*arguments)
    assert (ended.status, ended.out, ended.err) == (2, "", f"error: {message}\n")
    assert list(tmp_path.iterdir()) == []


def test_debug_shows_the_traceback(cli: Cli) -> None:
    ended = cli("--debug", "export", "maxilm")
    assert ended.status == 2
    assert "Traceback" in ended.err
    assert (
        "\nerror: no model named 'maxilm'; give one of minilm, mrt2, styletts2, tangoflux, or a folder with"
        in ended.err
    )


def test_a_bug_is_called_one(cli: Cli, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken() -> dict[str, str | None]:
        raise KeyError("[/oops]")

    monkeypatch.setattr("coreproof.backends.available", broken)
    ended = cli("backends")
    assert ended.status == 2
    assert ended.err.startswith("internal error: KeyError: '[/oops]'\n")
    assert "run again with --debug" in ended.err
    assert "Traceback" not in ended.err
    assert "Traceback" in cli("--debug", "backends").err


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("recipe.py", "def", "recipe.py cannot be imported: SyntaxError: "),
        ("recipe.py", "import nonesuch_package", "recipe.py needs the Python package 'nonesuch_package'"),
        ("recipe.py", "RECIPE = 3", "recipe.py must define RECIPE as a Recipe"),
        ("recipe.py", "1 / 0", "recipe.py cannot be imported: ZeroDivisionError: division by zero"),
    ],
)
def test_a_broken_recipe_is_the_recipes_fault(
    name: str, content: str, message: str, cli: Cli, tmp_path: Path
) -> None:
    (tmp_path / name).write_text(content)
    ended = cli("export", tmp_path, "-c", tmp_path)
    assert ended.status == 2
    assert ended.err.startswith(f"error: {message}")
