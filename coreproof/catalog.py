"""Finds a model: a name that coreproof ships, or a folder of the reader's own.

A model's parts are modules of fixed names. Shipped models keep them in ``exporters/<name>/`` and
``validation/<name>.py`` + ``.toml``; a folder given by path holds all of them: ``recipe.py``,
``reference.py``, ``suite.py`` and ``gates.toml``, with whatever else they import relatively.
"""

from __future__ import annotations

import hashlib
import importlib.util
import pkgutil
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from types import ModuleType
from typing import TypeVar

from coreproof.audio.sound import Report, Sound
from coreproof.convert.recipe import Recipe
from coreproof.errors import UsageError
from coreproof.package.manifest import checkpoint_digest, digest_files
from coreproof.parity.suite import Reference, Suite

T = TypeVar("T")
Generate = Callable[[Path, float, str, Mapping[str, str], Report], Sound]

_EXPORTERS = "coreproof_exporters"
_VALIDATION = "coreproof_validation"
_FIXTURES = "coreproof_fixtures"
_FOLDER = "coreproof_folder_"


@dataclass(frozen=True, slots=True)
class ModelParts:
    """Where a model's parts are; each is imported when it is asked for.

    ``argument``: what names the model on the command line. ``fixtures``: folders that may hold
    recorded references of this model.
    """

    name: str
    argument: str
    package: str
    suite_module: str
    gates: Path
    fixtures: tuple[Path, ...]

    def recipe(self) -> Recipe:
        return _attribute(f"{self.package}.recipe", "RECIPE", Recipe)

    def suite(self) -> Suite:
        return _attribute(self.suite_module, "SUITE", Suite)

    def suite_digest(self) -> str:
        """One sha256 for the sources of the suite: of a shipped model ``<name>.py`` and ``<name>_*.py``
        beside the gates, of a recipe folder all its modules."""
        folder = self.gates.parent
        patterns = ("*.py",) if self.package.startswith(_FOLDER) else (f"{self.name}.py", f"{self.name}_*.py")
        return checkpoint_digest(digest_files(folder, {p.name for g in patterns for p in folder.glob(g)}))

    def compute_reference(self) -> Callable[[Path], Reference]:
        """The model's ``reference.compute``, which runs the official implementation."""
        module = _import(f"{self.package}.reference")
        compute: Callable[[Path], Reference] = module.compute
        return compute

    def generate(self) -> Generate:
        """The model's ``pipeline.generate(build, seconds, backend, options, report)``, which makes sound
        with a build. Raises UsageError for a model that makes none."""
        module = _import(f"{self.package}.pipeline")
        made: Generate | None = getattr(module, "generate", None)
        if made is None:
            raise UsageError(f"{self.name} makes no sound")
        return made


def shipped() -> tuple[str, ...]:
    """Names of the models coreproof ships."""
    package = import_module(_EXPORTERS)
    return tuple(sorted(m.name for m in pkgutil.iter_modules(package.__path__) if m.ispkg))


def find(model: str) -> ModelParts:
    """The parts of ``model``: a shipped name or the path of a recipe folder.

    Raises UsageError listing the shipped names.
    """
    if model in shipped():
        validation, fixtures = (Path(next(iter(import_module(p).__path__))) for p in (_VALIDATION, _FIXTURES))
        return ModelParts(
            name=model,
            argument=model,
            package=f"{_EXPORTERS}.{model}",
            suite_module=f"{_VALIDATION}.{model}",
            gates=validation / f"{model}.toml",
            fixtures=(fixtures / model,),
        )
    folder = Path(model)
    if (folder / "recipe.py").is_file():
        package = _folder_package(folder.resolve())
        return ModelParts(
            name=folder.resolve().name,
            argument=model,
            package=package,
            suite_module=f"{package}.suite",
            gates=folder / "gates.toml",
            fixtures=(folder / "fixtures",),
        )
    looks_like_path = "/" in model or folder.exists()
    wrong = f"{model}: no recipe.py in that folder" if looks_like_path else f"no model named {model!r}"
    raise UsageError(f"{wrong}; give one of {', '.join(shipped())}, or a folder with a recipe.py")


def of_build(made_as: str, given: str | None) -> ModelParts:
    """The parts for a build of the model ``made_as``: those of ``given``, else those shipped.

    Raises UsageError when ``given`` is another model, or is left out for one that is not shipped.
    """
    if given is None and made_as not in shipped():
        raise UsageError(
            f"the build is of {made_as!r}, which is not shipped; pass --model with its recipe folder"
        )
    parts = find(given or made_as)
    if parts.recipe().name != made_as:
        raise UsageError(f"--model {given} is {parts.recipe().name!r}, the build is of {made_as!r}")
    return parts


def _folder_package(folder: Path) -> str:
    """Make ``folder`` importable as a package of its own, without touching ``sys.path``."""
    name = f"{_FOLDER}{hashlib.sha256(str(folder).encode()).hexdigest()[:12]}"
    if name not in sys.modules:
        spec = importlib.util.spec_from_loader(name, loader=None, is_package=True)
        assert spec is not None
        module = importlib.util.module_from_spec(spec)
        module.__path__ = [str(folder)]
        sys.modules[name] = module
    return name


def _import(module: str) -> ModuleType:
    try:
        return import_module(module)
    except ModuleNotFoundError as error:
        if error.name == module:
            raise UsageError(f"the model has no {module.rpartition('.')[2]}.py") from None
        raise UsageError(
            f"{module.rpartition('.')[2]}.py needs the Python package {error.name!r}; install it"
        ) from None
    except Exception as error:  # a recipe is anyone's code
        raise UsageError(
            f"{module.rpartition('.')[2]}.py cannot be imported: {type(error).__name__}: {error}"
        ) from error


def _attribute(module: str, name: str, kind: type[T]) -> T:
    value = getattr(_import(module), name, None)
    if not isinstance(value, kind):
        raise UsageError(f"{module.rpartition('.')[2]}.py must define {name} as a {kind.__name__}")
    return value
