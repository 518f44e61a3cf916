"""What the runtime knowingly leaves out, each with its reason: the one list of it.

``docs/left-out.md`` is written from it, a refused op cites it, and a test holds every line.
"""

from __future__ import annotations

from collections.abc import Mapping

_COMPLEX = (
    "coremltools computes with complex numbers as pairs of real tensors before it writes a package "
    "(passes/defs/lower_complex_dialect_ops.py)"
)
_TORCH = "coremltools' torch frontend replaces it before a package is written (frontend/torch/ssa_passes)"
_TENSORFLOW = _TORCH.replace("torch", "tensorflow")
_COMPLEX_OPS = (
    "complex", "complex_abs", "complex_fft", "complex_fftn", "complex_ifft", "complex_ifftn", "complex_imag",
    "complex_irfft", "complex_irfftn", "complex_real", "complex_rfft", "complex_rfftn", "complex_shape",
    "complex_stft",
)  # fmt: skip

OPS: Mapping[str, str] = {
    "_const_symbolic": "it stands for a size not known yet while coremltools converts; no package holds one",
    "custom_layer": "a class of the app computes it, which no package holds",
    **dict.fromkeys(_COMPLEX_OPS, _COMPLEX),
    **dict.fromkeys(
        ("torch_tensor_assign", "torch_upsample_bilinear", "torch_upsample_nearest_neighbor"), _TORCH
    ),
    **dict.fromkeys(("tf_lstm_block", "tf_lstm_block_cell", "tf_make_list"), _TENSORFLOW),
}
"""Ops that are refused whatever their arguments. Every other op of coremltools 9.0 runs."""

ARGUMENTS: Mapping[str, str] = {
    "affine with align_corners false, or coordinates_mode other than normalized_minus_one_to_one": (
        "the definition reserves them without saying what they do (ops/defs/iOS15/image_resizing.py)"
    ),
    "constexpr_cast to another dtype than fp32": (
        "the definition has no other (ops/defs/iOS16/constexpr_ops.py)"
    ),
    "conv_quantized with quantization_type lut": (
        "the definition does not say where its table is (ops/defs/iOS15/conv.py)"
    ),
    "einsum of another form than nchw,nwhu->nchu and chw,whr->chr": (
        "the definition has these two (ops/defs/iOS15/linear.py)"
    ),
    "an index outside the tensor, validate_indices false": (
        "the definition leaves its result open, so it is an error here (ops/defs/iOS17/scatter_gather.py)"
    ),
}
"""Arguments that are refused of ops that run otherwise."""

PACKAGES: Mapping[str, str] = {
    "models of other types than ML program": (
        "neural networks, tree ensembles, pipelines and the others hold no MIL program"
    ),
    "inputs of type string, int64, double, dictionary or sequence": (
        "an ML program computes with tensors; only models of other types take these"
    ),
    "strings computed at run time": "no MIL op gives one; as constants and as a classifier's label they work",
    "ops of iOS 26": (
        "coremltools 9.0 defines none: a program of opset CoreML9 gets the ops of iOS 18; int8 inputs and outputs work"
    ),
}
"""Whole packages or features that are refused, or not known."""

NEVER_CLAIMED: Mapping[str, str] = {
    "a device's own rounding": (
        "the numeric modes bracket what half precision may do; which kernel a device picks is its own affair"
    ),
    "placement, latency, memory and energy on a device": "only Core ML's compute plan and a device can tell",
    "the values of random ops": "the definitions fix their distributions, not the generator",
    "the order of what ties": (
        "argsort, topk and the arguments of a maximum leave it open; here the first of equal elements comes first"
    ),
    "what coremltools or Core ML refuses": (
        "it may run here all the same: tensors of rank above 5, l2_pool and ceil_mode over three dimensions, ceil_mode "
        "with lopsided padding"
    ),
}
"""What runs here, but says nothing about a device."""
