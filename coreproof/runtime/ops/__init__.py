"""The MIL ops, one module a family as in the MIL op reference of coremltools 9.0."""

from coreproof.runtime.ops import (  # noqa: F401  (each registers its ops)
    activation,
    conv,
    elementwise_binary,
    elementwise_unary,
    linear,
    normalization,
    pool,
    reduction,
    scatter_gather,
    states,
    tensor_operation,
    tensor_transformation,
    transformers,
)
