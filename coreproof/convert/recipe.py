"""Recipe and Stage: what to export, as data. ``convert/`` turns any Stage into a package."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from coreproof.convert.checkpoint import Checkpoint
from coreproof.errors import UsageError

if TYPE_CHECKING:
    import torch


# The dtypes a contract may use -> numpy names.
NUMPY = {"fp16": "float16", "fp32": "float32", "int32": "int32"}


@dataclass(frozen=True, slots=True)
class TensorSpec:
    """A feature of the contract. ``dtype``: fp16, fp32 or int32; always explicit."""

    name: str
    shape: tuple[int, ...]
    dtype: str


@dataclass(frozen=True, slots=True)
class StateSpec:
    """A state buffer, named after the torch buffer that holds it. Core ML states are fp16."""

    name: str
    shape: tuple[int, ...]
    dtype: str = "fp16"


@dataclass(frozen=True, slots=True)
class FunctionSpec:
    """One function of a package that has several: the Stage's module at shapes of its own."""

    name: str
    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]


@dataclass(frozen=True, slots=True)
class Precision:
    """``compute``: fp16 or fp32. ``keep_fp32`` selects coremltools ops that stay fp32 in an fp16
    package, and ``reason`` says why they must."""

    compute: str
    keep_fp32: Callable[[Any], bool] | None = None
    reason: str = ""


@dataclass(frozen=True, slots=True)
class Compression:
    """How weights of more than ``threshold`` elements are stored.

    ``kind``: ``linear`` (8 bits: symmetric int8 with a scale for each output channel) or ``palette``
    (``bits`` of 1, 2, 3, 4, 6 or 8: an index for each element into a table of 2**bits values). Of a palette
    ``group_size`` output channels share a table, which needs iOS18; None: the whole tensor does.
    """

    kind: str
    bits: int
    group_size: int | None = None
    threshold: int = 2048


@dataclass(frozen=True, slots=True)
class Stage:
    """One package to be: ``name`` is the stage's role in its model, ``package`` the folder name
    without ``.mlpackage``, unique in the recipe.

    ``module`` builds the torch module, in eval mode, with the checkpoint's weights.
    ``constants`` are glob patterns for blobs that come from no checkpoint key (masks, tables);
    any other blob without an origin is an error, because something folded a weight.
    ``compression`` is done after every other pass, to weights as the program would else hold them.
    ``compute_units`` is what the package is meant for; it is recorded, not written into it.
    ``mlx`` builds the same stage for backend ``mlx``: a function of inputs and states, both dicts of float32
    (int32 for integers) MLX arrays, that returns the outputs and the states after them by name.

    ``functions`` makes a multifunction package (iOS 18 and later): one graph for each, all over one copy
    of the weights. The first is the default, and its features are what ``inputs`` and ``outputs`` say.
    ``trace_inputs`` are the inputs at the shapes at which the module is traced, where those are not the
    package's: one trace serves every shape, as long as the module's code depends on none.
    """

    name: str
    package: str
    module: Callable[[Checkpoint], torch.nn.Module]
    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]
    precision: Precision
    states: tuple[StateSpec, ...] = ()
    target: str = "iOS17"
    compute_units: str = "ALL"
    constants: tuple[str, ...] = ()
    compression: Compression | None = None
    metadata: Mapping[str, str] = field(default_factory=dict)
    mlx: Callable[[Checkpoint], Any] | None = None
    functions: tuple[FunctionSpec, ...] = ()
    trace_inputs: tuple[TensorSpec, ...] = ()

    def at(self, function: str | None) -> Stage:
        """This Stage as the package of its function ``function`` alone; None stands for the default."""
        for spec in self.functions if function is not None else ():
            if spec.name == function:
                return replace(self, inputs=spec.inputs, outputs=spec.outputs, functions=())
        if function is not None:
            names = ", ".join(f.name for f in self.functions) or "one function without a name"
            raise UsageError(f"stage {self.name!r} has no function {function!r}; it has {names}")
        return replace(self, functions=())


@dataclass(frozen=True, slots=True)
class Published:
    """The pinned publication of a checkpoint: a Hugging Face revision and the sha256 of each file."""

    repo: str
    revision: str
    files: Mapping[str, str]
    licence: str


@dataclass(frozen=True, slots=True)
class Recipe:
    """Everything coreproof needs to know of a model to export it.

    ``load(path)`` reads a checkpoint; ``stages(checkpoint, variant)`` lists a variant's packages;
    ``on_request`` are variants beside ``variants`` that are exported only when they are named;
    ``peer_ops`` says of how many compute ops the same stage is in another exporter's package, where one is
    published or was built to compare with.
    ``synth(folder, size, seed)`` writes a synthetic checkpoint, size being one of ``sizes``.
    ``side_files`` are files of the checkpoint's folder that a host needs beside the packages (a
    tokenizer). ``host_files(checkpoint)`` makes further ones from weights that no package holds, the
    same bytes for the same checkpoint.
    """

    name: str
    load: Callable[[Path], Checkpoint]
    variants: tuple[str, ...]
    stages: Callable[[Checkpoint, str], tuple[Stage, ...]]
    synth: Callable[[Path, str, int], None]
    on_request: tuple[str, ...] = ()
    sizes: tuple[str, ...] = ("small", "full")
    peer_ops: Mapping[str, int] = field(default_factory=dict)
    published: Published | None = None
    side_files: tuple[str, ...] = ()
    host_files: Callable[[Checkpoint], Mapping[str, bytes]] | None = None
