"""Tells the serializer about references: how `ObjectRef` is written, and that it counts as a reference."""

from __future__ import annotations

from shoal.runtime.refs import ObjectRef, reduce_ref
from shoal.serial.hooks import register_ref_type


def install() -> None:
    """Register the types of references; once per process, before anything is serialized."""
    register_ref_type(ObjectRef, reduce_ref)
