"""The MIL ops, one module a family as in the MIL op reference of coremltools 9.0."""

from coreproof.runtime.ops import (  # noqa: F401  (each registers its ops)
    activation,
    classify,
    constexpr,
    control_flow,
    conv,
    elementwise_binary,
    elementwise_unary,
    image_resizing,
    linear,
    normalization,
    pool,
    quantization,
    random,
    recurrent,
    reduction,
    scatter_gather,
    states,
    tensor_operation,
    tensor_transformation,
    transformers,
)
