"""Lists, with expected values by hand; the packages are cases of coremltools 9.0
converters/mil/mil/ops/tests/iOS14/test_control_flow.py."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import coreproof
from coreproof.errors import InputError
from coreproof.runtime.registry import lookup


def call(name: str, *arguments: Any, **named: Any) -> Any:
    return lookup(name, "ios15").fn(*arguments, **named)


def values(*rows: list[float]) -> torch.Tensor:
    return torch.tensor(rows)


def contents(made: Any) -> list[list[float]]:
    length = call("list_length", made)
    assert length.dtype is torch.int32
    assert length.shape == ()
    return [call("list_read", made, i).tolist() for i in range(length)]


@pytest.mark.parametrize(
    ("dtype", "held"),
    [("fp32", torch.float32), ("fp16", torch.float32), ("int32", torch.int32), ("bool", torch.bool)],
)
def test_a_new_list_is_zero(dtype: str, held: torch.dtype) -> None:
    made = call("make_list", [torch.tensor(2), torch.tensor(3)], 4, dtype=dtype)
    assert call("list_length", made).tolist() == 4
    for index in range(4):
        element = call("list_read", made, index)
        assert element.dtype is held
        assert element.tolist() == [[0] * 3] * 2


def test_a_list_by_default() -> None:
    made = call("make_list", [])
    assert contents(made) == [0.0]
    assert call("list_read", made, 0).dtype is torch.float32
    assert contents(call("list_write", made, 2, torch.tensor(5.0))) == [0.0, 0.0, 5.0]


def test_writing_leaves_the_list_it_came_from() -> None:
    first = call("make_list", [2], 2)
    second = call("list_write", first, 1, torch.tensor([1.0, 3.0]))
    third = call("list_write", second, 1, torch.tensor([7.0, 8.0]))
    assert contents(first) == [[0, 0], [0, 0]]
    assert contents(second) == [[0, 0], [1, 3]]
    assert contents(third) == [[0, 0], [7, 8]]


def test_scatter() -> None:
    made = call("make_list", [2], 3)
    scattered = call("list_scatter", made, (2, 0, 2), values([1, 2], [3, 4], [5, 6]))
    assert contents(scattered) == [[3, 4], [0, 0], [5, 6]]
    longer = call("list_scatter", scattered, (4, 1), values([7, 8], [9, 10]))
    assert contents(longer) == [[3, 4], [9, 10], [5, 6], [0, 0], [7, 8]]
    assert contents(made) == [[0, 0]] * 3
    with pytest.raises(InputError, match="2 values for 1 places"):
        call("list_scatter", made, (0,), values([1, 2], [3, 4]))


def test_gather() -> None:
    made = call("list_scatter", call("make_list", [2], 3), (0, 1), values([1, 2], [3, 4]))
    assert call("list_gather", made, (1, 2, 1)).tolist() == [[3, 4], [0, 0], [3, 4]]
    assert call("list_gather", made, ()).shape == (0, 2)


def test_shape_known_by_what_is_written() -> None:
    made = call("make_list", ["i0", torch.tensor(2)], 2, dtype="int32")
    for index in (0, 1):
        with pytest.raises(InputError, match="unknown element shape"):
            call("list_read", made, index)
    with pytest.raises(InputError, match="unknown element shape"):
        call("list_gather", made, ())
    written = call("list_write", made, 1, torch.ones(3, 2, dtype=torch.int32))
    blank = call("list_read", written, 0)
    assert blank.dtype is torch.int32
    assert blank.tolist() == [[0, 0]] * 3
    assert call("list_gather", written, (0, 1)).shape == (2, 3, 2)


@pytest.mark.parametrize("index", [-1, 2])
@pytest.mark.parametrize(("name", "many"), [("list_read", False), ("list_gather", True)])
def test_reading_outside(name: str, many: bool, index: int) -> None:
    with pytest.raises(InputError, match=f"index {index} is out of bounds for a list of length 2"):
        call(name, call("make_list", [2], 2), (index,) if many else index)


@pytest.mark.parametrize(("dynamic", "index"), [(True, -1), (False, -1), (False, 2)])
def test_writing_outside(dynamic: bool, index: int) -> None:
    made = call("make_list", [1], 2, dynamic)
    for name, place, value in (
        ("list_write", index, values([1])[0]),
        ("list_scatter", (index,), values([1])),
    ):
        with pytest.raises(InputError, match=f"index {index} is out of bounds for a list of length 2"):
            call(name, made, place, value)
    assert contents(call("list_write", made, 1, values([1])[0])) == [[0], [1]]


def run(program: Any, path: Path, **inputs: list[float]) -> dict[str, list[Any]]:
    import coremltools as ct

    ct.convert(
        program,
        minimum_deployment_target=ct.target.iOS15,
        compute_precision=ct.precision.FLOAT32,
        skip_model_load=True,
    ).save(str(path))
    arrays = {name: np.array(value, np.float32) for name, value in inputs.items()}
    outputs = coreproof.load(path).predict(arrays)
    return {name: np.squeeze(array).tolist() for name, array in outputs.items()}


def test_in_a_package(tmp_path: Path) -> None:
    import coremltools as ct
    from coremltools.converters.mil import Builder as mb

    @mb.program(input_specs=[mb.TensorSpec((2,)), mb.TensorSpec((2,))], opset_version=ct.target.iOS15)
    def program(a: Any, b: Any) -> Any:
        made = mb.make_list(init_length=2, elem_shape=(2,))
        first = mb.list_read(ls=made, index=0, name="first")
        made = mb.list_write(ls=made, index=0, value=a)
        made = mb.list_write(ls=made, index=4, value=b)
        updates = np.array([[-1, -2], [-4, -5]], np.float32)
        made = mb.list_scatter(ls=made, indices=[2, 1], value=updates)
        length = mb.list_length(ls=made, name="length")
        read = mb.list_read(ls=made, index=0, name="read")
        return first, read, mb.list_gather(ls=made, indices=[4, 2, 3], name="gathered"), length

    assert run(program, tmp_path / "m.mlpackage", a=[1, 3], b=[2, 4]) == {
        "first": [0, 0],
        "read": [1, 3],
        "gathered": [[2, 4], [-1, -2], [0, 0]],
        "length": 5,
    }


def test_grown_in_a_loop(tmp_path: Path) -> None:
    import coremltools as ct
    from coremltools.converters.mil import Builder as mb

    def body(i: Any, count: Any, made: Any, update: Any) -> Any:
        element = mb.mul(x=update, y=mb.cast(x=i, dtype="fp32"))
        return mb.add(x=i, y=1), count, mb.list_write(ls=made, index=i, value=element), update

    def cond(i: Any, count: Any, made: Any, update: Any) -> Any:
        return mb.less(x=mb.cast(x=i, dtype="fp32"), y=count)

    @mb.program(input_specs=[mb.TensorSpec((1,)), mb.TensorSpec((2,))], opset_version=ct.target.iOS15)
    def program(count: Any, update: Any) -> Any:
        made = mb.make_list(init_length=1, elem_shape=(2,))
        made = mb.while_loop(_cond=cond, _body=body, loop_vars=(0, count, made, update))[2]
        indices = mb.range_1d(start=0, end=mb.list_length(ls=made), step=1)
        return mb.list_gather(ls=made, indices=indices, name="gathered")

    got = run(program, tmp_path / "m.mlpackage", count=[3], update=[1, 2])
    assert got == {"gathered": [[0, 0], [1, 2], [2, 4]]}
