"""Export recipes in a process of its own: ``run_export.py TORCH_VERSION OUTPUT MODEL=CHECKPOINT...``

With TORCH_VERSION other than "installed", torch says that this is its version, wherever it is asked.
"""

from __future__ import annotations

import importlib.metadata
import sys
from pathlib import Path

import torch

version, output, *models = sys.argv[1:]
if version != "installed":
    installed = importlib.metadata.version
    torch.__version__ = type(torch.__version__)(version)
    importlib.metadata.version = lambda name: version if name == "torch" else installed(name)

from coreproof import catalog  # noqa: E402
from coreproof.convert.export import export, select  # noqa: E402

for model in models:
    name, _, folder = model.partition("=")
    recipe = catalog.find(name).recipe()
    checkpoint = recipe.load(Path(folder))
    pairs = select(recipe, checkpoint, (), ())
    export(recipe, Path(folder), checkpoint, pairs, Path(output) / recipe.name, lambda *_: None)
