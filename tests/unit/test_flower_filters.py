"""A list's filters, to the URL and back."""

from __future__ import annotations

from datetime import timedelta
from urllib.parse import parse_qs

import pytest

from celery_durable.flower.filters import FilterError, Wanted
from celery_durable.run import RunState


def test_what_a_url_asks_for_comes_back_as_a_url() -> None:
    query = "state=failed&task=a.b&q=%3Cx%3E&since=2h&error=1&tag=customer%3D42&tag=tier%3Dgold"
    wanted = Wanted.of(parse_qs(query))

    assert Wanted.of(parse_qs(wanted.query())) == wanted
    assert parse_qs(wanted.query(view="")) == {
        name: values for name, values in parse_qs(query).items() if name != "state"
    }


def test_a_view_is_states_and_a_reason() -> None:
    found = Wanted.of({"state": ["exhausted"], "since": ["2h"], "tag": ["a=b=c"]}).filter()

    assert (found.states, found.reason) == ([RunState.FAILED], "exhausted")
    assert (found.since, found.tags) == (timedelta(hours=2), '{"a": "b=c"}')


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"state": ["burning"]}, "no state 'burning'"),
        ({"since": ["yesterday"]}, "neither like 10m"),
        ({"tag": ["customer"]}, "key=value"),
        ({"error": ["maybe"]}, "neither 0 nor 1"),
        ({"q": ["a\0b"]}, "NUL"),
    ],
)
def test_what_cannot_be_meant_is_an_error_that_says_why(arguments: dict[str, list[str]], words: str) -> None:
    with pytest.raises(FilterError, match=words):
        Wanted.of(arguments)


def test_a_misspelt_filter_in_json_is_an_error_and_not_no_filter() -> None:
    with pytest.raises(FilterError, match="no filter 'tsk'; did you mean 'task'"):
        Wanted.of_document({"tsk": "media.process"})
    assert Wanted.of_document({}).empty
    assert not Wanted.of_document({"id": ["a", "b"]}).empty


@pytest.mark.parametrize("nothing", [None, "", " ", [], ["a"], {"a": 1}, True])
def test_a_filter_in_json_that_says_nothing_is_an_error_and_not_all_runs(nothing: object) -> None:
    with pytest.raises(FilterError, match="task is no text, or says nothing"):
        Wanted.of_document({"state": "failed", "task": nothing})
    with pytest.raises(FilterError, match="tag is no text, or says nothing"):
        Wanted.of_document({"state": "failed", "tag": [nothing]})


def test_each_filter_can_be_taken_away_alone() -> None:
    wanted = Wanted.of({"task": ["a"], "tag": ["x=1", "y=2"], "error": ["0"]})

    assert dict(wanted.chips) == {
        "task: a": "error=0&tag=x%3D1&tag=y%3D2",
        "without error": "task=a&tag=x%3D1&tag=y%3D2",
        "tag: x=1": "task=a&error=0&tag=y%3D2",
        "tag: y=2": "task=a&error=0&tag=x%3D1",
    }
