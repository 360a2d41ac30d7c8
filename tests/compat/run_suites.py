"""Run the tests of kombu and of Celery, unmodified, on this package: what `tox -e compat` does.

    python tests/compat/run_suites.py [--only kombu] [options of the suite …]

Without `--only` both run, kombu's without the options, which are Celery's; see `run_kombu_suite.py` and
`run_celery_suite.py`.
"""

from __future__ import annotations

import argparse
import sys

import run_celery_suite
import run_kombu_suite


def main() -> int:
    """Run what was asked for; return 1 when anything failed."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--only", choices=["kombu", "celery"], help="one suite, with the options that follow")
    chosen, options = parser.parse_known_args()
    statuses = []
    if chosen.only != "celery":
        statuses.append(run_kombu_suite.main(options if chosen.only else []))
    if chosen.only != "kombu":
        statuses.append(run_celery_suite.main(options))
    return int(any(statuses))


if __name__ == "__main__":
    sys.exit(main())
