"""Print what became of the tests in a folder of JUnit files, the sum alone on the last line.

Usage: python .ci/counts.py FOLDER. The exit status is 0 only if something passed and nothing failed.
"""

from __future__ import annotations

import sys
from collections import Counter
from pathlib import Path
from xml.etree import ElementTree as ET


def outcome(case: ET.Element) -> str:
    """Which of the three a test case became; an error in a fixture is a failure."""
    met = {child.tag for child in case}
    if met & {"failure", "error"}:
        return "failed"
    return "skipped" if "skipped" in met else "passed"


def in_words(counts: Counter[str]) -> str:
    """The three counts in a line of their own."""
    return ", ".join(f"{counts[name]} {name}" for name in ("passed", "failed", "skipped"))


def main(folder: Path) -> int:
    """Report every file in the folder, then the sum."""
    total: Counter[str] = Counter()
    for file in sorted(folder.glob("*.xml")):
        counts: Counter[str] = Counter()
        for case in ET.parse(file).iter("testcase"):  # noqa: S314  written by our own pytest a moment ago
            became = outcome(case)
            counts[became] += 1
            if became != "passed":
                print(f"{became}: {case.get('classname')}::{case.get('name')}")
        print(f"{file.stem}: {in_words(counts)}")
        total += counts
    print(in_words(total))
    return 0 if total["passed"] and not total["failed"] else 1


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1])))
