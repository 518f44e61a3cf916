"""The MIL ops, one module a family as in the MIL op reference of coremltools 9.0."""
