"""Makes `example_project` of the checkout importable, and nothing else of it.

The checkout's root on sys.path would hide the installed wheel of celery_durable, which is what is tested.
"""

from __future__ import annotations

import sys
from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path

ROOT = Path(__file__).parents[2]
CLIP = ROOT / "example_project" / "media_files" / "bigbuckbunny.mp4"


def _load(name: str) -> None:
    folder = ROOT / name
    spec = spec_from_file_location(name, folder / "__init__.py", submodule_search_locations=[str(folder)])
    if spec is None or spec.loader is None:
        raise ImportError(name)
    module = module_from_spec(spec)
    sys.modules[name] = module
    spec.loader.exec_module(module)


if "example_project" not in sys.modules:
    _load("example_project")
