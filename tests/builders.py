"""Programs of every family, built with coremltools' MIL builder and written by its own exporter.

No graph pass runs, so what a function here calls is what its package holds.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any

import coremltools as ct
import numpy as np
import pytest
from coremltools.converters.mil import Builder as mb
from coremltools.converters.mil.mil import types

IOS = {15: ct.target.iOS15, 16: ct.target.iOS16, 17: ct.target.iOS17, 18: ct.target.iOS18}


@dataclass(frozen=True)
class Model:
    """A program of inputs ``shapes`` (dtype fp32 unless ``dtypes`` says otherwise) and its options."""

    build: Callable[..., Any]
    ios: int
    shapes: tuple[tuple[int, ...], ...]
    dtypes: tuple[Any, ...] = ()
    states: tuple[tuple[int, ...], ...] = ()
    options: dict[str, Any] = field(default_factory=dict)


MODELS: dict[str, Model] = {}


def model(
    ios: int, *shapes: tuple[int, ...], dtypes: tuple[Any, ...] = (), states: Any = (), **options: Any
) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    def register(build: Callable[..., Any]) -> Callable[..., Any]:
        MODELS[build.__name__] = Model(build, ios, shapes, dtypes, states, options)
        return build

    return register


def convert(name: str, path: Path) -> Path:
    """Write the package of one of MODELS."""
    one = MODELS[name]
    dtypes = one.dtypes or (types.fp32,) * len(one.shapes)
    specs = [mb.TensorSpec(s, dtype=d) for s, d in zip(one.shapes, dtypes, strict=True)]
    specs += [mb.StateTensorSpec(s, dtype=types.fp16) for s in one.states]
    program = mb.program(input_specs=specs, opset_version=IOS[one.ios])(one.build)
    converted = ct.convert(
        program,
        convert_to="mlprogram",
        minimum_deployment_target=IOS[one.ios],
        compute_precision=ct.precision.FLOAT32,
        pass_pipeline=ct.PassPipeline.EMPTY,
        skip_model_load=True,
        **one.options,
    )
    converted.save(str(path))
    return path


@pytest.fixture(scope="session")
def built(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """``built(NAME)`` is the package of one of MODELS, made once. Do not write into it."""
    folder = tmp_path_factory.mktemp("built")
    return cache(lambda name: convert(name, folder / f"{name}.mlpackage"))


def numbers(*shape: int, dtype: str = "float32") -> np.ndarray:
    return np.random.default_rng(shape).standard_normal(shape).astype(dtype)


def fields(bits: int, *shape: int) -> Any:
    """Integers of a type of less than a byte, which coremltools marks in the dtype."""
    values = np.random.default_rng(bits).integers(0, 1 << bits, shape).astype(np.uint8)
    return values.astype(getattr(types, f"np_uint{bits}_dtype"))


@model(15, (2, 8))
def activation(x):
    x = mb.gelu(x=mb.relu(x=x), mode="TANH_APPROXIMATION")
    return mb.softmax(x=mb.leaky_relu(x=x, alpha=0.1), axis=-1, name="y")


@model(15, (1, 3, 8, 8))
def conv(x):
    x = mb.conv(x=x, weight=numbers(4, 3, 3, 3), bias=numbers(4), pad_type="same", strides=[2, 2])
    return mb.conv_transpose(x=x, weight=numbers(4, 2, 3, 3), output_shape=[1, 2, 9, 9], name="y")


@model(15, (1, 2, 8, 8))
def pool(x):
    x = mb.max_pool(x=x, kernel_sizes=[2, 2], strides=[2, 2], pad_type="custom", pad=[0, 1, 0, 1])
    return mb.avg_pool(x=x, kernel_sizes=[2, 2], pad_type="valid", exclude_padding_from_average=True)


@model(15, (2, 4), (4, 4))
def linear(x, y):
    x = mb.linear(x=mb.matmul(x=x, y=y, transpose_y=True), weight=numbers(3, 4), bias=numbers(3))
    return mb.einsum(values=(mb.reshape(x=x, shape=[1, 2, 3]), numbers(3, 2, 5)), equation="chw,whr->chr")


@model(15, (1, 4, 6))
def normalization(x):
    x = mb.batch_norm(x=x, mean=numbers(4), variance=np.ones(4, np.float32), epsilon=1e-5)
    return mb.layer_norm(x=mb.instance_norm(x=x, gamma=numbers(4), beta=numbers(4)), axes=[-1, 1])


@model(15, (3, 5))
def reduction(x):
    return mb.reduce_argmax(x=x, axis=1, keep_dims=False), mb.reduce_log_sum_exp(x=x, axes=[0, 1])


@model(15, (3, 5))
def elementwise(x):
    x = mb.clip(x=mb.sqrt(x=mb.square(x=x)), alpha=float("-inf"), beta=1e4)
    y = mb.floor_div(x=x, y=mb.add(x=numbers(5), y=np.float32(7.0)))
    return mb.select(cond=mb.less(x=x, y=0.5), a=x, b=y)


@model(17, (3, 5))
def casts(x):
    made = [mb.cast(x=x, dtype=d) for d in ("fp16", "int32", "int16", "uint16", "int8", "uint8", "bool")]
    return [mb.cast(x=m, dtype="fp32", name=f"y{n}") for n, m in enumerate(made)]


@model(15, (2, 6), (2, 6))
def joining(x, y):
    parts = mb.split(x=mb.concat(values=(x, y, numbers(2, 3)), axis=1), split_sizes=[4, 5, 6], axis=1)
    stacked = mb.stack(values=(x, y), axis=0)
    return (*parts, mb.tile(x=stacked, reps=[1, 2, 1]), *mb.topk(x=x, k=3, axis=1))


@model(15, (1, 4, 6, 6))
def transformation(x):
    x = mb.slice_by_index(
        x=x, begin=[0, 0, 1, 5], end=[1, 4, 0, 0], stride=[1, 2, 1, -1], end_mask=[True, False, True, False]
    )
    return mb.transpose(x=mb.reshape(x=x, shape=[1, 2, -1]), perm=[0, 2, 1])


@model(16, (2, 6), (3, 4))
def reshaped_like(x, y):
    return mb.reshape_like(
        x=x, ref_tensors=(y, y), begins=[0, 1], ends=[1, 2], end_masks=[False, False], name="y"
    )


@model(15, (4, 5), (3,), dtypes=(types.fp32, types.int32))
def gathering(x, indices):
    updated = mb.scatter(data=x, indices=indices, updates=numbers(3, 5), axis=0, mode="add")
    return mb.gather(x=updated, indices=indices, axis=0), mb.gather_nd(x=x, indices=[[0, 1], [3, 4]])


@model(17, (1, 2, 6, 6))
def resizing(x):
    x = mb.upsample_nearest_neighbor(x=x, scale_factor_height=2, scale_factor_width=2)
    boxes = np.array([[0.1, 0.2, 0.8, 0.9]], np.float32)
    return mb.crop_resize(
        x=x, boxes=boxes, box_indices=np.zeros(1, np.int32), target_height=4, target_width=4,
        normalized_coordinates=True, sampling_mode="ALIGN_CORNERS",
    )  # fmt: skip


@model(15, (3, 1, 4))
def recurrent(x):
    h, c = np.zeros((1, 2), np.float32), np.zeros((1, 2), np.float32)
    lstm = mb.lstm(
        x=x, initial_h=h, initial_c=c, weight_ih=numbers(8, 4), weight_hh=numbers(8, 2), bias=numbers(8),
        direction="forward", output_sequence=True,
    )  # fmt: skip
    gru = mb.gru(x=x, initial_h=h, weight_ih=numbers(6, 4), weight_hh=numbers(6, 2))
    return (*lstm, *gru)


@model(15, (4,))
def random(x):
    drawn = mb.random_normal(shape=[4], mean=0.0, stddev=1.0, seed=7)
    return mb.add(x=x, y=mb.random_bernoulli(shape=[4], prob=0.5, seed=-1)), drawn


@model(17, (1, 4, 4), (1, 4, 2))
def boxes(coordinates, scores):
    return mb.non_maximum_suppression(boxes=coordinates, scores=scores, max_boxes=2, iou_threshold=0.3)


@model(16, (1, 4, 6, 6))
def pixels(x):
    x = mb.pixel_unshuffle(x=mb.pixel_shuffle(x=x, upscale_factor=2), downscale_factor=np.uint32(2))
    return mb.resample(
        x=x, coordinates=numbers(1, 3, 3, 2), sampling_mode="bilinear", padding_mode="constant",
        padding_value=0.0, coordinates_mode="normalized_minus_one_to_one", align_corners=True,
    )  # fmt: skip


@model(15, (3, 4), (3, 2))
def scattering(x, y):
    x = mb.scatter_nd(data=x, indices=[[0, 1], [2, 3]], updates=numbers(2), mode="update")
    index = np.array([[0, 1], [3, 2], [1, 0]], np.int32)
    return mb.scatter_along_axis(data=x, indices=index, updates=y, axis=1, mode="mul")


@model(15, (2, 5))
def sequences(x):
    x = mb.reverse(x=mb.cumsum(x=x, axis=1, exclusive=True, reverse=False), axes=[1])
    padded = mb.pad(x=x, pad=[0, 0, 2, 1], mode="reflect", constant_val=0.0)
    hot = mb.one_hot(indices=np.array([1, 0, 3], np.int32), one_hot_vector_size=4, axis=-1)
    return mb.sliding_windows(x=padded, axis=1, size=3, stride=2), mb.identity(x=hot), mb.non_zero(x=x)


@model(15, (1,), (3,), dtypes=(types.int32, types.fp32))
def condition(flag, x):
    def yes():
        return mb.mul(x=x, y=numbers(3)), mb.relu(x=x)

    def no():
        return x, mb.add(x=x, y=1.0)

    return mb.cond(pred=mb.equal(x=mb.squeeze(x=flag), y=1), _true_fn=yes, _false_fn=no, name="branch")


@model(15, (2, 4))
def loop(x):
    def more(i, total):
        return mb.less(x=i, y=4)

    def step(i, total):
        grown = mb.cond(
            pred=mb.less(x=i, y=2),
            _true_fn=lambda: mb.add(x=total, y=x),
            _false_fn=lambda: mb.linear(x=total, weight=numbers(4, 4)),
        )
        return mb.add(x=i, y=1), grown

    return mb.while_loop(_cond=more, _body=step, loop_vars=(0, x))


@model(15, (3, 2), (2,), dtypes=(types.fp32, types.int32))
def lists(x, indices):
    made = mb.make_list(init_length=2, dynamic_length=True, elem_shape=(2,), dtype="fp32")
    made = mb.list_scatter(ls=made, indices=[0, 1, 2], value=x)
    made = mb.list_write(ls=made, index=1, value=np.array([5, 7], np.float32))
    return mb.list_gather(ls=made, indices=indices), mb.list_length(ls=made), mb.list_read(ls=made, index=2)


@model(18, (4,), states=((4,), (2, 2)))
def states(x, total, other):
    before = mb.read_state(input=total)
    after = mb.add(x=before, y=mb.cast(x=x, dtype="fp16"))
    kept = mb.coreml_update_state(state=total, value=after)
    mb.coreml_update_state(state=other, value=np.eye(2, dtype=np.float16))
    return mb.cast(x=kept, dtype="fp32"), mb.cast(x=mb.read_state(input=other), dtype="fp32")


@model(18, (1, 2, 4, 8), (1, 2, 4, 8))
def attention(query, key):
    mask = np.triu(np.full((4, 4), -np.inf, np.float32), 1)
    return mb.scaled_dot_product_attention(query=query, key=key, value=key, attn_mask=mask)


@model(17, (4, 6))
def quantized(x):
    q = mb.quantize(
        input=x, scale=numbers(6) ** 2, zero_point=np.arange(6, dtype=np.int8), output_dtype="int8", axis=1
    )
    return mb.dequantize(input=q, scale=np.float32(0.5))


@model(16, (4, 6))
def constexpr_ios16(x):
    affine = mb.constexpr_affine_dequantize(
        quantized_data=np.arange(24, dtype=np.uint8).reshape(4, 6), zero_point=np.uint8(3),
        scale=np.abs(numbers(4)), axis=0,
    )  # fmt: skip
    table = mb.constexpr_lut_to_dense(
        indices=np.array([0b01101100, 0b11, 0b10, 1, 2, 3], np.uint8), lut=numbers(4), shape=np.uint32([4, 6])
    )
    sparse = mb.constexpr_sparse_to_dense(
        nonzero_data=numbers(12), mask=np.full(3, 0b01010101, np.uint8), shape=np.uint32([4, 6])
    )
    half = mb.constexpr_cast(source_val=numbers(4, 6, dtype="float16"), output_dtype="fp32")
    for constant in (affine, table, sparse, half):
        x = mb.add(x=x, y=constant)
    return x


@model(18, (4, 8))
def constexpr_blockwise(x):
    four = np.random.default_rng(0).integers(-8, 8, (4, 8)).astype(np.int8).astype(types.np_int4_dtype)
    for constant in (
        mb.constexpr_blockwise_shift_scale(data=four, scale=numbers(4, 2), offset=four[:, :2]),
        mb.constexpr_blockwise_shift_scale(data=fields(4, 4, 8), scale=numbers(1, 1), offset=numbers(1, 1)),
        mb.constexpr_blockwise_shift_scale(data=fields(4, 1, 8), scale=numbers(1, 8)),
    ):
        x = mb.add(x=x, y=constant)
    return x


@model(18, (4, 8))
def constexpr_lut(x):
    for bits in (1, 2, 3, 4, 6):
        dense = mb.constexpr_lut_to_dense(indices=fields(bits, 4, 8), lut=numbers(2, 1, 1 << bits, 1))
        x = mb.add(x=x, y=dense)
    small = mb.constexpr_lut_to_dense(indices=fields(3, 1, 4), lut=numbers(1, 1, 8, 2), vector_axis=1)
    return mb.add(x=x, y=small)


@model(18, (4, 8))
def constexpr_sparse(x):
    mask = np.tile(np.array([1, 0], np.uint8), (4, 4)).astype(types.np_uint1_dtype)
    mask_, nonzero = mb.constexpr_lut_to_sparse(
        indices_mask=mask, indices_nonzero_data=fields(2, 16), lut=numbers(1, 1, 4, 1)
    )
    dense = mb.constexpr_sparse_to_dense(nonzero_data=nonzero, mask=mask_)
    mask_, nonzero = mb.constexpr_sparse_blockwise_shift_scale(
        data_mask=mask,
        nonzero_data=np.arange(16, dtype=np.int8),
        scale=numbers(4, 1),
        offset=np.int8([[1]] * 4),
    )
    return mb.add(x=mb.add(x=x, y=dense), y=mb.constexpr_sparse_to_dense(nonzero_data=nonzero, mask=mask_))


@model(18, (3,))
def wide_weights(x):
    """Types that weight files hold from iOS 18 on."""
    kinds = ("int16", "uint16", "int32")
    return (mb.identity(x=x), *(mb.const(val=np.arange(12).astype(kind)) for kind in kinds))


@model(17, (3,))
def small_constants(x):
    """Immediates of every type that coremltools writes, empty ones and texts among them."""
    kinds = ("bool", "int8", "uint8", "int16", "uint16", "int32", "float16", "float32")
    made = [mb.const(val=np.array([[1], [0]], dtype=k)) for k in kinds]
    made += [mb.const(val=np.zeros((2, 0, 3), k)) for k in ("float32", "int32", "float16")]
    special = np.array([np.nan, np.inf, -np.inf, -0.0, 2.0**-24, 65504], np.float16)
    return (mb.identity(x=x), mb.const(val=special), *made)


@model(15, (1, 3), classifier_config=ct.ClassifierConfig(['a "b"', "c\\d", "naïve"]))
def text_labels(x):
    return mb.softmax(x=x, axis=1, name="p")


@model(15, (1, 3), classifier_config=ct.ClassifierConfig([5, -7, 2**40]))
def number_labels(x):
    return mb.softmax(x=x, axis=1, name="p")


@model(15, (1, 3, 8, 8), inputs=[ct.ImageType(name="x", shape=(1, 3, 8, 8), color_layout="BGR", scale=0.5)])
def image(x):
    return mb.relu(x=x)


def _flexible(kind: str, shape: Any) -> None:
    from coremltools.converters.mil.mil import get_new_symbol

    def build(x):
        rows = mb.reduce_prod(x=mb.shape(x=x), axes=[0], keep_dims=True)
        return mb.relu(x=x), mb.reshape(x=x, shape=mb.concat(values=(rows, [1]), axis=0))

    inputs = [ct.TensorType(name="x", shape=shape)]
    MODELS[kind] = Model(build, 16, ((get_new_symbol(), 3),), options={"inputs": inputs})


_flexible("ranged", (ct.RangeDim(1, 8, default=2), 3))
_flexible("enumerated", ct.EnumeratedShapes(shapes=[[1, 3], [4, 3]], default=[4, 3]))
