"""Packages of every family, for programs to be read from and written to."""

from builders import built

__all__ = ["built"]
