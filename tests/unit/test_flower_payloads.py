"""Stored bytes for people: readable, bounded, redacted, and never executed."""

from __future__ import annotations

import json
import pickle
from typing import Any

from celery.backends.base import compress_payload

from celery_durable.flower.payloads import GLIMPSE, INLINE, called_with, pretty, readable
from celery_durable.operations.redaction import HIDDEN, Redaction

OPEN = Redaction(None)


def shown(
    data: bytes, codec: str | None = "json", *, size: int | None = None, redaction: Redaction = OPEN
) -> Any:
    return readable(
        data,
        size=len(data) if size is None else size,
        codec=codec,
        kind="output",
        name="charge",
        redaction=redaction,
    )


def without_secrets(kind: str, name: str, value: Any) -> Any:
    assert (kind, name) == ("output", "charge")
    return {**value, "token": "***"}


def failing(kind: str, name: str, value: Any) -> Any:
    raise KeyError(name)


def test_json_is_indented_and_anything_else_is_text_or_hexadecimal() -> None:
    assert shown(b'{"a":[1]}').text == '{\n  "a": [\n    1\n  ]\n}'
    assert (shown(b"a: 1", "yaml").text, shown(b"a: 1", "yaml").form) == ("a: 1", "text")
    assert shown(b"\x80\x01\xff", "msgpack").text.startswith("00000000  80 01 ff")
    assert shown(b"a\0b", None).form == "hex"


def test_a_pickle_is_shown_and_not_loaded() -> None:
    class Bomb:
        def __reduce__(self) -> Any:
            return exec, ("raise SystemExit",)

    assert shown(pickle.dumps(Bomb()), "pickle").form == "hex"


def test_text_that_no_encoding_takes_is_escaped() -> None:
    assert shown(b'"\\ud800\\u0000"').text == '"\\ud800\\u0000"'
    pretty({"deep": "\ud800"}).encode()


def test_a_document_nested_too_deeply_to_be_parsed_is_shown_as_text() -> None:
    deep = b"[" * 100_000 + b"]" * 100_000

    assert shown(deep).form in ("text", "json")


def test_of_a_large_payload_the_beginning_is_shown_even_when_cut_within_a_character() -> None:
    data = ("é" * 40_000).encode()[:-1]
    found = shown(data, size=50_000_000)

    assert (found.bytes, found.whole) == (50_000_000, False)
    assert set(found.text) == {"é"}
    assert len(found.text) <= 64 * 1024


def test_a_redaction_function_decides_what_is_shown() -> None:
    redaction = Redaction(f"{__name__}:without_secrets")
    redaction.__dict__["_function"] = without_secrets

    assert json.loads(shown(b'{"token":"s3cret","a":1}', redaction=redaction).text) == {
        "token": "***",
        "a": 1,
    }
    assert shown(b'{"token":"s3', size=50_000_000, redaction=redaction).text == ""


def test_a_payload_that_was_small_because_it_was_compressed_is_shown_in_part() -> None:
    stored = compress_payload(json.dumps(["x" * 1000] * 50_000).encode(), "gzip")
    assert len(stored) < INLINE

    found = shown(stored)

    assert (len(found.text), found.whole, found.bytes) == (GLIMPSE, False, len(stored))
    assert shown(b"[" + b"[" * 100_000).form == "text"  # deeper than anybody parses


def test_a_redaction_function_that_fails_or_is_not_there_hides_everything() -> None:
    redaction = Redaction("nowhere.at:all")
    assert redaction("output", "charge", "s3cret") == HIDDEN
    redaction.__dict__["_function"] = failing
    assert "s3cret" not in shown(b'"s3cret"', redaction=redaction).text


def test_a_body_is_shown_as_arguments_and_the_canvas_only_if_there_is_one() -> None:
    message = json.dumps({"content_type": "application/json"}).encode()
    plain = json.dumps([["a"], {"b": 1}, {"callbacks": None, "chain": None}]).encode()
    linked = json.dumps([[], {}, {"chain": [{"task": "x"}]}]).encode()

    assert json.loads(called_with(plain, message)[0]) == {"args": ["a"], "kwargs": {"b": 1}}
    assert json.loads(called_with(linked, message)[0])["canvas"] == {"chain": [{"task": "x"}]}
    assert called_with(b"\x80", b"not json") == (b"\x80", None)
