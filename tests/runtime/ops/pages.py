"""Writes the pages in docs/ whose every line a test holds."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from textwrap import fill

from modes import Row

from coreproof.runtime import left_out

DOCS = Path(__file__).resolve().parents[3] / "docs"

NO_FLOATS = {
    "equal", "greater", "greater_equal", "less", "less_equal", "not_equal", "logical_and", "logical_not",
    "logical_or", "logical_xor", "argsort", "list_length", "non_zero", "quantize", "reduce_argmax", "reduce_argmin",
    "shape",
}  # fmt: skip
OTHER_REASONS = {
    "classify": "the probabilities are passed on as they are",
    "make_list": "elements are held and passed on as they are",
    "list_gather": "elements are held and passed on as they are",
    "list_read": "elements are held and passed on as they are",
    "list_scatter": "elements are held and passed on as they are",
    "list_write": "elements are held and passed on as they are",
    "read_state": "buffers are passed on as they are",
    "write_state": "buffers are passed on as they are",
    "coreml_update_state": "buffers are passed on as they are",
    "random_bernoulli": "draws; with one seed those of `fp32`, rounded once",
    "random_normal": "draws; with one seed those of `fp32`, rounded once",
    "random_uniform": "draws; with one seed those of `fp32`, rounded once",
    "random_categorical": "draws indices, which fp16 rounds above 2048",
}
HEAD = """# Numeric modes, op by op

How far the results of one op may be apart, in `fp32`, `typed` and `fp16acc`, when its inputs and its result
are typed fp16. Measured on one sample an op against the op's definition in float64 (numpy, scipy or torch);
`tests/runtime/ops/test_modes.py` holds every line of it for every version of every op, and
`tests/runtime/ops/pages.py` writes this page. It says nothing about a device.

`fp32` is within 1e-5 of the definition, relative to the element or to the largest one of the result. What
follows is about the other two.
"""
SECTIONS = {
    "moves": (
        "The same in every mode",
        "These move, select or fill elements. Nothing is rounded.",
    ),
    "exact": (
        "One rounding of the exact result",
        "Bit for bit the definition's result rounded once to fp16, in both modes.",
    ),
    "rounded": (
        "One rounding of an fp32 result",
        "`typed` and `fp16acc` are bit for bit the result of `fp32` rounded once, and so at most one fp16 number "
        "beside the definition's rounded once. What these add up, as `scatter` with several updates to one place or "
        "an interpolation, and the running product of `reduce_prod`, stay fp32 in both.",
    ),
}
TAIL = """
## Sums

`typed` is within one fp16 number of the definition's result rounded once: in which order fp32 sums are taken
is the kernel's affair. `fp16acc` rounds every product and running sum to fp16. The last column bounds how far
it is then from `typed`, relative to the largest value of the result, in units of 2^-11: the largest relative
error of one rounding to fp16. Samples are standard normal; where elements are only added they lie about 1, and
weights are scaled so that results do.

| op | sample | `fp16acc` from `typed`, at most |
|---|---|---|
{rows}

A sum that fp16 cannot hold is infinite in `fp16acc` even where the result could be held. `layer_norm` of values
300 from their mean is 0 there and 1 in `typed`, because 300 squared is beyond 65504; the mean of 70,000 twos is
infinite there and 2 in `typed`.

## Without a sample

{others}
"""


def numeric_modes(rows: Sequence[Row]) -> str:
    """``docs/numeric-modes.md``."""
    parts = [HEAD]
    for kind, (title, text) in SECTIONS.items():
        mine = [r for r in rows if r.kind == kind]
        parts.append(f"\n## {title}\n\n{_wrapped(text)}\n\n{_wrapped(_names(r.op for r in mine))}\n")
        parts += [f"\n{_wrapped(_exception(r))}\n" for r in mine if r.ulps > 1]
    sums = "\n".join(f"| `{r.op}` | {r.sample} | {r.apart:g} |" for r in rows if r.kind == "sums")
    reasons = dict.fromkeys(NO_FLOATS, "no float result") | OTHER_REASONS
    others = [
        f"- {_names(op for op, why in reasons.items() if why == reason)}: {reason}"
        for reason in dict.fromkeys(reasons.values())
    ]
    return "".join(parts) + TAIL.format(rows=sums, others="\n".join(map(_item, others)))


def _exception(row: Row) -> str:
    mode = row.arguments.get("mode", "EXACT")
    return (
        f"`{row.op}` of mode `{mode}` may be {row.ulps} numbers beside it far out on the negative side, where the "
        "fp32 function loses digits."
    )


def _names(ops: Iterable[str]) -> str:
    return ", ".join(f"`{op}`" for op in sorted(set(ops)))


def _wrapped(text: str) -> str:
    return fill(text, 110, break_on_hyphens=False)


def _item(text: str) -> str:
    return fill(text, 110, subsequent_indent="  ", break_on_hyphens=False)


LEFT_OUT = """# What the runtime leaves out

Every op of coremltools 9.0 runs, in every version, but for what stands here. The list is
`coreproof/runtime/left_out.py`; `tests/runtime/ops/test_left_out.py` holds it, and `tests/runtime/ops/pages.py`
writes this page.
"""


def what_is_left_out() -> str:
    """``docs/left-out.md``."""
    tables: dict[str, Mapping[str, str]] = {
        "Ops": {
            _names(op for op, why in left_out.OPS.items() if why == reason): reason
            for reason in dict.fromkeys(left_out.OPS.values())
        },
        "Arguments": left_out.ARGUMENTS,
        "Packages": left_out.PACKAGES,
        "Never claimed": left_out.NEVER_CLAIMED,
    }
    parts = [LEFT_OUT]
    for title, table in tables.items():
        items = "\n".join(_item(f"- {what}: {reason}") for what, reason in table.items())
        parts.append(f"\n## {title}\n\n{items}\n")
    return "".join(parts)


if __name__ == "__main__":
    import modes_elementwise
    import modes_moves
    import modes_sums

    rows = [*modes_moves.ROWS, *modes_elementwise.ROWS, *modes_sums.ROWS]
    DOCS.mkdir(exist_ok=True)
    (DOCS / "numeric-modes.md").write_text(numeric_modes(rows), encoding="utf-8")
    (DOCS / "left-out.md").write_text(what_is_left_out(), encoding="utf-8")
