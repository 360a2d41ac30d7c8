"""How the values of a run become bytes and come back as equal values of the same type.

A value is lowered to a plain tree (what JSON has) in which everything JSON lacks is a *tag*: an object
with one key that starts with ``~``, such as ``{"~decimal": "1.10"}``. The tree goes through a `Serializer`;
decoding reads the tags, so stored values describe themselves. A return annotation says which class to
build, and lets a class be renamed or moved while runs are in flight.

What is kept: type and value of everything supported, order of dicts, order and duplicates of lists.
What is not: identity (two references to one list come back as two lists), the class of a ``str``, ``int``,
``float`` or ``bytes`` subclass other than an Enum (``numpy.float64`` comes back as ``float``), and a
``tzinfo`` other than ``timezone`` and ``ZoneInfo`` (the same instant with a fixed offset comes back).
"""

from __future__ import annotations

from celery_durable.serialization.building import build
from celery_durable.serialization.codec import ValueCodec
from celery_durable.serialization.digests import digest
from celery_durable.serialization.errors import build_error, is_same, lower_error
from celery_durable.serialization.hints import MISSING, parameter_annotation, return_annotation
from celery_durable.serialization.restoring import restore_parts
from celery_durable.serialization.serializers import JsonSerializer, Serializer

__all__ = [
    "MISSING",
    "JsonSerializer",
    "Serializer",
    "ValueCodec",
    "build",
    "build_error",
    "digest",
    "is_same",
    "lower_error",
    "parameter_annotation",
    "restore_parts",
    "return_annotation",
]
