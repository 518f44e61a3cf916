"""Packages of every family, to be compiled."""

from builders import built

__all__ = ["built"]
