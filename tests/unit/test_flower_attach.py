"""The way into Flower: in place, all or nothing, and never in Flower's way."""

from __future__ import annotations

import subprocess
import sys

import pytest

PREPARED = """
import logging, sys
logging.basicConfig(stream=sys.stdout, format="%(levelname)s %(message)s")
import flower.urls, flower.command
before = list(flower.urls.handlers)
import celery_durable.flower as ours
"""
UNTOUCHED = "print('untouched', list(flower.urls.handlers) == before, 'ui_modules' in flower.urls.settings)"


def run(program: str) -> str:
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_routes_are_put_in_front_of_the_one_that_catches_everything_and_only_once() -> None:
    program = f"""{PREPARED}
handlers = flower.urls.handlers
ours.install()
ours.install()
assert handlers is flower.urls.handlers
assert handlers[-1] == before[-1]
assert [one for one in handlers if one in before] == before
names = [getattr(one, "name", None) for one in handlers]
print(names.count("durable"), len(flower.urls.settings["ui_modules"]))
"""
    assert run(program).split() == ["1", "1"]


def test_another_plugins_modules_stay() -> None:
    program = f"""{PREPARED}
other = {{"Other": object}}
flower.urls.settings["ui_modules"] = other
ours.install()
assert flower.urls.settings["ui_modules"][0] is other
"""
    run(program)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ("flower.urls.handlers = tuple(before)", "keeps its routes elsewhere"),
        ("del flower.urls.settings", "keeps its routes elsewhere"),
        (
            "import celery_durable.flower.attach as a; a.version = lambda _: '2.1.0'",
            "Flower 2.1.0 is not supported",
        ),
        (
            "import celery_durable.flower.attach as a; a.version = lambda _: '3.0'",
            "Flower 3.0 is not supported",
        ),
        ("sys.modules['celery_durable.flower.routes'] = None", "The Durable tab is not installed"),
    ],
)
def test_a_flower_that_is_another_than_expected_is_left_alone_with_one_clear_line(
    change: str, words: str
) -> None:
    settings = "flower.urls.settings = {}" if "del " in change else ""
    output = run(f"{PREPARED}\n{change}\nours.install()\n{settings}\n{UNTOUCHED}")

    assert words in output
    assert output.count("ERROR") == 1
    assert output.strip().endswith("untouched True False")


def test_the_commands_load_where_flower_is_not_installed() -> None:
    run("import sys; sys.modules['flower'] = None; import celery_durable.cli")


def test_loading_the_commands_imports_neither_the_pages_nor_flower() -> None:
    program = """
import sys, celery_durable.cli
print(*sorted(name for name in sys.modules if name.startswith(("celery_durable.flower.", "flower"))))
"""
    assert run(program).split() == ["celery_durable.flower.settings"]


def test_a_bar_that_cannot_be_understood_is_shown_as_it_is() -> None:
    program = f"""{PREPARED}
from celery_durable.flower.nav import NavTemplate
import celery_durable.flower.nav as nav
nav.enabled = lambda _: True
class Handler:
    application = None
    class request: path = "/x"
    def reverse_url(self, name, *arguments): return "/" + name
    ui = {{}}
module = NavTemplate.__new__(NavTemplate)
module.handler = Handler()
assert module._with_tab(b"<nav>something else</nav>") == b"<nav>something else</nav>"
assert b"Durable" in module._with_tab(b'<ul><a href="/tasks">Tasks</a></ul>')
"""
    run(program)
