"""The faults that are planted in the ops, which of them are drawn, and what becomes of one."""

from __future__ import annotations

import ast
import textwrap
import tomllib
from pathlib import Path

import mutation
import pytest
from mutants import Mutant, mutants, mutated
from mutation import Result
from planted import run_tests

SOURCE = textwrap.dedent(
    '''
    """Nothing here is a fault: 1 + 1."""
    from __future__ import annotations
    TABLE = {"a": torch.sin, "b": torch.cos}
    add("a", torch.sin, moves=True)

    @op("a", since="ios17", pure=False)
    def a(x: Tensor, axis: int | None = -1, *, num: int) -> tuple[int, 3]:
        """Nor here."""
        if axis < 2 and not num:
            raise ValueError(f"axis {axis + 1}: expected 2")
        x = torch.sum(x, axis, keepdim=num) + 0.5
        x += 1
        return x.amax() if axis else num["up"]
    '''
)
FAULTS = [
    ("torch.sin", "torch.cos"), ("torch.cos", "torch.sin"), ("1", "2"), ("-1", "1"), ("False", "True"),
    ("2", "3"), ("axis < 2", "axis <= 2"), ("not num", "num"), ("axis < 2 and (not num)", "axis < 2 or not num"),
    ("raise ValueError(f'axis {axis + 1}: expected 2')", "pass"),
    ("axis < 2 and (not num)", "not (axis < 2 and (not num))"),
    ("torch.sum(x, axis, keepdim=num)", "torch.sum(x, axis)"), ("0.5", "1.5"),
    ("torch.sum(x, axis, keepdim=num) + 0.5", "torch.sum(x, axis, keepdim=num) - 0.5"),
    ("x = torch.sum(x, axis, keepdim=num) + 0.5", "pass"), ("1", "2"), ("x += 1", "pass"), ("x += 1", "x -= 1"),
    ("x.amax", "x.amin"), ("'up'", "'up_'"), ("axis", "not axis"),
]  # fmt: skip


def test_every_fault_and_no_other() -> None:
    found = mutants("a", SOURCE)
    assert sorted((m.before, m.after) for m in found) == sorted(FAULTS)
    assert [m.index for m in found] == list(range(len(FAULTS)))
    assert all(m.code == SOURCE.splitlines()[m.line - 1].strip() for m in found)
    alike = mutants("b", "x = 1 + 1\ny = 1\nx = 1 + 1")
    assert [(m.line, m.nth) for m in alike if m.before == "1"] == [(1, 0), (1, 1), (2, 0), (3, 2), (3, 3)]


def test_one_fault_at_a_time() -> None:
    sound = ast.unparse(ast.parse(SOURCE)).splitlines()
    for mutant in mutants("a", SOURCE):
        planted = ast.unparse(mutated(SOURCE, mutant.index)).splitlines()
        changed = [pair for pair in zip(sound, planted, strict=True) if pair[0] != pair[1]]
        assert len(changed) == 1, mutant
    with pytest.raises(IndexError, match="21 mutants, not 22"):
        mutated(SOURCE, len(FAULTS))


def test_the_ops_have_faults_that_compile() -> None:
    for family, source in mutation.families().items():
        found = mutants(family, source)
        for mutant in found[:: max(1, len(found) // 4)]:
            compile(mutated(source, mutant.index), family, "exec")


def _found(family: str, count: int) -> list[Mutant]:
    return [Mutant(family, i, i + 1, f"x = {i}", str(i), str(i + 1)) for i in range(count)]


def test_a_sample_repeats_and_holds_every_family() -> None:
    modules = {"few": _found("few", 2), "many": _found("many", 300), "none": []}
    first, again, other = (mutation.sample(modules, 40, seed) for seed in (0, 0, 1))
    assert first == again != other
    assert len({(m.family, m.index) for m in first}) == 40
    assert {m.family for m in first} == {"few", "many"}
    assert len(mutation.sample(modules, 0, 0)) == 302
    assert {m.family for m in mutation.sample(modules, 1, 0)} == {"few", "many"}


def test_reasons(tmp_path: Path) -> None:
    path = tmp_path / "reasons.toml"
    path.write_text(
        '[[reason]]\nwhy = "why not"\nmutants = [["few", "x = 0", "0", "1"], ["few", "x = 1", "1", "2", 0]]\n'
    )
    listed = mutation.reasons(path)
    keys = [("few", "x = 0", "0", "1", 0), ("few", "x = 1", "1", "2", 0)]
    assert listed == dict.fromkeys(keys, "why not")
    assert mutation.outdated(listed, _found("few", 2)) == []
    assert mutation.outdated(listed, _found("few", 1)) == ["few | x = 1 | 1 | 2 | 0"]


def test_the_committed_reasons_are_of_families_that_exist() -> None:
    listed = tomllib.loads(mutation.REASONS.read_text(encoding="utf-8"))["reason"]
    assert all(entry["why"].endswith(".") for entry in listed)
    assert {family for entry in listed for family, *_ in entry["mutants"]} <= set(mutation.families())


def test_every_family_has_tests_of_its_own_and_of_no_other() -> None:
    for family in mutation.families():
        names = [Path(path).name for path in mutation.tests_of(family)]
        assert names[0].startswith(f"test_{family}")
        assert {"test_modes.py", "test_schema.py"} < set(names)
        assert not any(f"test_{f}.py" in names for f in mutation.families() if f != family)


def test_the_figures() -> None:
    few, many = _found("few", 1), _found("many", 3)
    results = [Result(few[0], "survived", "why not"), *(Result(m, "killed", None) for m in many)]
    told = mutation.as_json(results, 7, 1.23)
    assert (told["seed"], told["mutants"], told["killed"], told["share"]) == (7, 4, 3, 0.75)
    assert told["families"] == {"few": {"survived": 1}, "many": {"killed": 3}}
    (survivor,) = told["survivors"]
    assert (survivor["family"], survivor["line"], survivor["reason"]) == ("few", 1, "why not")


VICTIM = "def double(x):\n    return x * 2\n"


@pytest.mark.parametrize(
    ("test", "planted", "limit", "verdict"),
    [
        ("assert double(3) == 6", False, 100, "survived"),
        ("assert double(3) == 6", True, 100, "killed"),
        ("assert double(0) == 0", True, 100, "survived"),
        ("while double(3) != 6: pass", True, 3, "timed out"),
    ],
)
def test_what_becomes_of_a_fault(
    test: str, planted: bool, limit: float, verdict: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.syspath_prepend(tmp_path)
    (tmp_path / "victim.py").write_text(VICTIM)
    tests = tmp_path / "test_victim.py"
    tests.write_text(f"from victim import double\ndef test():\n    {test}\n")
    last = ("victim", VICTIM, len(mutants("victim", VICTIM)) - 1)
    assert run_tests([str(tests)], limit, last if planted else None) == verdict
