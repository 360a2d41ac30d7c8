"""Run kombu's own transport tests, unmodified, against `durable+postgresql://`.

    python tests/compat/run_kombu_suite.py [-- pytest options]

The tests are the mixins of `t/integration/common.py` in the sdist of the kombu that is installed: basic use,
exchange types, time to live, priorities, messages, event loop. `DURABLE_TEST_POSTGRES` names the server.
"""

from __future__ import annotations

import argparse
import os
import shutil
import subprocess
import sys
import tarfile
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

import kombu
from run_celery_suite import database

if TYPE_CHECKING:
    from collections.abc import Sequence

HERE = Path(__file__).parent

# Python 3.11 has the filter from 3.11.4 on, 3.10 from 3.10.12 on
SAFELY: dict[str, Any] = {"filter": "data"} if hasattr(tarfile, "data_filter") else {}


def fetch_suite(target: Path) -> Path:
    """Download the sdist of the kombu that is installed and unpack its tests; return where they are."""
    pip = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--no-binary", "kombu"]
    subprocess.run([*pip, "--dest", target, f"kombu=={kombu.__version__}"], check=True)
    (sdist,) = target.glob("kombu-*.tar.gz")
    root = target / f"kombu-{kombu.__version__}"
    with tarfile.open(sdist) as archive:
        wanted = [member for member in archive.getmembers() if member.name.startswith(f"{root.name}/t/")]
        archive.extractall(target, members=wanted, **SAFELY)
    return root


def main(given: Sequence[str] | None = None) -> int:
    """Run the suite; return pytest's status."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    _, options = parser.parse_known_args(given)
    options = [option for option in options if option != "--"]
    with tempfile.TemporaryDirectory(prefix="kombu-suite-") as scratch:
        root = fetch_suite(Path(scratch))
        shutil.copy(HERE / "kombu_suite_tests.py", root / "test_durable.py")
        with database(os.environ["DURABLE_TEST_POSTGRES"]) as url:
            environment = {**os.environ, "KOMBU_SUITE_URL": f"durable+{url}"}
            environment.pop("PYTHONSAFEPATH", None)  # kombu's tests are a package in the working directory
            command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "test_durable.py"]
            return subprocess.run([*command, *options], cwd=root, env=environment, check=False).returncode


if __name__ == "__main__":
    sys.exit(main())
