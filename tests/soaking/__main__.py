"""Soak for some minutes, and exit with 1 when something broke."""

from __future__ import annotations

import argparse
import random
import sys

from soaking.setting import soaking


def main() -> int:
    """Run it."""
    parser = argparse.ArgumentParser(prog="python -m soaking", description=__doc__)
    parser.add_argument("--minutes", type=float, default=15.0)
    parser.add_argument("--seed", type=int, default=random.randrange(10**6))
    parser.add_argument("--keep", metavar="FOLDER", help="write logs and figures here")
    chosen = parser.parse_args()
    with soaking(chosen.seed, say=lambda text: print(text, flush=True)) as soak:  # noqa: T201
        story = soak.run(chosen.minutes * 60)
        if chosen.keep:
            soak.keep(chosen.keep, story)
    print(story.text)  # noqa: T201
    return 1 if story.violations else 0


if __name__ == "__main__":
    sys.exit(main())
