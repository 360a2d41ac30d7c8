"""SQL by name, and in a schema of another name."""

from __future__ import annotations

import re
from importlib import resources

import pytest

from celery_durable.store import migrate, queries

NOUNS = sorted(
    entry.name.removesuffix(".sql")
    for entry in (resources.files("celery_durable.store") / "sql").iterdir()
    if entry.name.endswith(".sql")
)


def without_comments(sql: str) -> str:
    return re.sub(r"--[^\n]*", "", sql)


def text(noun: str) -> str:
    return (resources.files("celery_durable.store") / "sql" / f"{noun}.sql").read_text("utf-8")


@pytest.mark.parametrize("noun", NOUNS)
def test_every_query_has_a_name_of_its_own_and_nothing_is_left_out(noun: str) -> None:
    names = re.findall(r"^-- name: (\w+)$", text(noun), re.MULTILINE)

    assert len(names) == len(set(names))
    assert list(queries.load(noun)) == names
    assert all(without_comments(sql).strip() for sql in queries.load(noun).values())


@pytest.mark.parametrize("noun", NOUNS)
def test_a_query_is_one_statement(noun: str) -> None:
    """Postgres prepares no more than one."""
    assert [name for name, sql in queries.load(noun).items() if ";" in without_comments(sql)] == []


@pytest.mark.parametrize("noun", NOUNS)
def test_values_are_bound_and_never_pasted(noun: str) -> None:
    for name, sql in queries.load(noun).items():
        assert not re.search(r"%s|\{\w*\}(?!')", without_comments(sql)), f"{noun}.{name}"


@pytest.mark.parametrize("noun", NOUNS)
def test_another_schemas_name_is_put_everywhere_and_quoted(noun: str) -> None:
    for sql in queries.load(noun, 'Ada "x"').values():
        rest = re.sub(r"'durable\.\w+'", "", without_comments(sql))  # settings of the server
        assert not re.search(r"\bdurable\.", rest)


def test_migrations_too() -> None:
    for migration in migrate.migrations():
        rest = without_comments(queries.in_schema(migration.sql, "jobs"))
        assert not re.search(r"\bdurable\.", rest.replace("'durable.clock_offset'", ""))


def test_strings_and_comments_keep_their_words() -> None:
    sql = "-- it's durable.run's\nselect 'durable.clock_offset', 'it''s' from durable.run -- durable.x"

    assert queries.in_schema(sql, "jobs") == (
        "-- it's durable.run's\nselect 'durable.clock_offset', 'it''s' from \"jobs\".run -- durable.x"
    )
    assert queries.in_schema(sql, "durable") == sql


def test_a_name_with_quotes_is_quoted() -> None:
    assert queries.quote_identifier('Ada "x"') == '"Ada ""x"""'


def test_a_noun_without_a_file_is_an_error() -> None:
    with pytest.raises(FileNotFoundError):
        queries.load("nothing")
