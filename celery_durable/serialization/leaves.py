"""Values without parts that JSON lacks: lone surrogates, big ints, NaN, bytes, Decimal, times, paths."""

from __future__ import annotations

import binascii
from datetime import date, datetime, time, timedelta, timezone
from decimal import Decimal
from math import isfinite
from pathlib import Path, PurePath, PurePosixPath, PureWindowsPath
from typing import TYPE_CHECKING, Any
from uuid import UUID

from celery_durable.serialization.refusals import Refused

if TYPE_CHECKING:
    from collections.abc import Callable

LARGEST_INT = 2**63 - 1
"""Ints up to this one are plain: every JSON library, msgpack and Postgres keep them exactly."""

_MICROSECOND = timedelta(microseconds=1)


def lower_str(value: str) -> object:
    """Keep text as it is; tag text with lone surrogates, which UTF-8 cannot hold."""
    if not value.isascii():
        try:
            value.encode()
        except UnicodeEncodeError:
            return {"~str": value.encode("unicode_escape").decode("ascii")}
    return value


def lower_int(value: int) -> object:
    """Keep an int; tag a huge one, in hex because Python limits the digits of decimal conversions."""
    return value if -LARGEST_INT <= value <= LARGEST_INT else {"~int": hex(value)}


def lower_float(value: float) -> object:
    """Keep a finite float; tag NaN and the infinities."""
    return value if isfinite(value) else {"~float": repr(value)}


def _lower_complex(value: complex) -> object:
    return {"~complex": [lower_float(value.real), lower_float(value.imag)]}


def _lower_bytes(value: bytes) -> object:
    return {"~bytes": binascii.b2a_base64(value, newline=False).decode()}


def _lower_bytearray(value: bytearray) -> object:
    return {"~bytearray": binascii.b2a_base64(value, newline=False).decode()}


def _lower_decimal(value: Decimal) -> object:
    return {"~decimal": str(value)}


def _lower_uuid(value: UUID) -> object:
    return {"~uuid": str(value)}


def _lower_path(value: Path) -> object:
    return {"~path": lower_str(str(value))}


def _lower_pure_path(value: PurePath) -> object:
    return {"~purepath": [type(value).__name__, lower_str(str(value))]}


def _lower_timedelta(value: timedelta) -> object:
    return {"~timedelta": [value.days, value.seconds, value.microseconds]}


def _lower_date(value: date) -> object:
    return {"~date": date.isoformat(value)}


def _lower_datetime(value: datetime) -> object:
    return {"~datetime": _lower_clock(value, datetime.isoformat)}


def _lower_time(value: time) -> object:
    return {"~time": _lower_clock(value, time.isoformat)}


def _lower_clock(value: Any, isoformat: Callable[[Any], str]) -> object:
    zone = value.tzinfo
    key = getattr(zone, "key", None) if type(zone).__name__ == "ZoneInfo" else None
    if key is None and zone is not None and type(zone) is not timezone:
        value = _with_fixed_offset(value)
        zone = value.tzinfo
    if not value.fold and (zone is None or (type(zone) is timezone and _has_default_name(zone))):
        return isoformat(value)
    naive = isoformat(value.replace(tzinfo=None, fold=0))
    if type(zone) is not timezone:
        return [naive, value.fold, key]
    return [naive, value.fold, [zone.utcoffset(None) // _MICROSECOND, lower_str(zone.tzname(None))]]


def _with_fixed_offset(value: Any) -> Any:
    """Replace a zone of another library, which may need that library to be rebuilt, by its offset now."""
    offset, name = value.utcoffset(), value.tzname()
    if offset is None:
        raise Refused(value.tzinfo, "its offset from UTC is not known")
    zone = timezone(offset) if not offset and name in {None, "UTC"} else timezone(offset, name or "UTC")
    return value.replace(tzinfo=zone, fold=0)


def _has_default_name(zone: timezone) -> bool:
    offset = zone.utcoffset(None)
    return zone.tzname(None) == timezone(offset).tzname(None)


LOWER_LEAF: dict[type, Callable[[Any], object]] = {
    bytes: _lower_bytes,
    bytearray: _lower_bytearray,
    complex: _lower_complex,
    Decimal: _lower_decimal,
    UUID: _lower_uuid,
    datetime: _lower_datetime,
    date: _lower_date,
    time: _lower_time,
    timedelta: _lower_timedelta,
    type(Path()): _lower_path,
    PurePosixPath: _lower_pure_path,
    PureWindowsPath: _lower_pure_path,
}
"""By exact type: a subclass may carry more than its base would bring back."""


def restore_str(tree: Any) -> str:
    """Read what `lower_str` wrote."""
    return tree if type(tree) is str else _restore_escaped(tree["~str"])


def _restore_escaped(payload: str) -> str:
    return payload.encode("ascii").decode("unicode_escape")


def _restore_float(tree: Any) -> float:
    return float(tree["~float"]) if type(tree) is dict else float(tree)


def _restore_clock(payload: Any, fromisoformat: Callable[[str], Any]) -> Any:
    if type(payload) is str:
        return fromisoformat(payload)
    text, fold, zone = payload
    return fromisoformat(text).replace(fold=fold, tzinfo=_restore_zone(zone))


def _restore_zone(tree: Any) -> Any:
    if tree is None:
        return None
    if type(tree) is str:
        from zoneinfo import ZoneInfo  # only values with a named zone need it

        return ZoneInfo(tree)
    offset, name = tree
    named = timezone(timedelta(microseconds=offset), restore_str(name))
    return timezone(timedelta(microseconds=offset)) if _has_default_name(named) else named


def _restore_pure_path(payload: Any) -> PurePath:
    flavour, text = payload
    return (PureWindowsPath if flavour == "PureWindowsPath" else PurePosixPath)(restore_str(text))


RESTORE_LEAF: dict[str, Callable[[Any], object]] = {
    "~str": _restore_escaped,
    "~int": lambda payload: int(payload, 16),
    "~float": float,
    "~complex": lambda payload: complex(_restore_float(payload[0]), _restore_float(payload[1])),
    "~bytes": binascii.a2b_base64,
    "~bytearray": lambda payload: bytearray(binascii.a2b_base64(payload)),
    "~decimal": Decimal,
    "~uuid": UUID,
    "~datetime": lambda payload: _restore_clock(payload, datetime.fromisoformat),
    "~date": date.fromisoformat,
    "~time": lambda payload: _restore_clock(payload, time.fromisoformat),
    "~timedelta": lambda payload: timedelta(*payload),
    "~path": lambda payload: Path(restore_str(payload)),
    "~purepath": _restore_pure_path,
}
