"""A run as bars: where its time went, with idle time folded away; numbers only, for tests to look at."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

from celery_durable.run import RunState

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence
    from datetime import datetime

    from celery_durable.store.views import RunView, StepView

# An idle stretch longer than this share of the busy time is folded to this share.
_FOLD = 0.04
_FOLDS = 0.5  # and all of them together to this one
_SHORTEST_FOLD = 1.0  # seconds
_MOST_TRIES = 3_000  # of all steps together that are drawn


@dataclass(frozen=True)
class Bar:
    """A stretch of time, in percent of the whole: as it was, and with idle time folded.

    Attributes:
        kind: what it is, for its colour: an outcome, `queue`, `wait`, `backoff`, `executing`, `try` (one that
            failed), `tries` (several whose times are not known).
        at, wide: where it begins and how wide it is.
        fold_at, fold_wide: the same with idle time folded.
        seconds: how long it took.
        words: what a reader is told about it.
    """

    kind: str
    at: float
    wide: float
    fold_at: float
    fold_wide: float
    seconds: float
    words: str = ""


@dataclass(frozen=True)
class Row:
    """One step, or one child `run`, with its bars; the last one is what it ended with."""

    name: str
    outcome: str
    bars: tuple[Bar, ...]
    run: str = ""


@dataclass(frozen=True)
class Fold:
    """An idle stretch that is folded: where, and how many seconds are hidden."""

    at: float
    wide: float
    seconds: float


@dataclass(frozen=True)
class Timeline:
    """The bars of a run.

    Attributes:
        seconds: from its creation to its end, or now.
        attempts: one bar for each attempt and each time between them.
        rows: the bars of each step, by its key.
        folds: what is folded.
        pieces: (second, folded second) where the fold changes, for an axis.
        folded_seconds: how long it is with everything folded.
        busy, queued, waited: how many seconds it was executed, was queued, waited on purpose.
        executing: what is executed now.
        children: the bars of its children, by the key of the wait that started them, None for others.
    """

    seconds: float
    attempts: tuple[Bar, ...]
    rows: dict[str, Row]
    folds: tuple[Fold, ...]
    pieces: tuple[tuple[float, float], ...]
    folded_seconds: float
    busy: float
    queued: float
    waited: float
    executing: Bar | None = None
    children: dict[str | None, list[Row]] = field(default_factory=dict)


@dataclass(frozen=True)
class _Stretch:
    start: float
    end: float
    kind: str
    words: str


class Scale:
    """Turns seconds since the run's creation into percent, with and without idle time.

    Arguments:
        seconds: how long it all took.
        busy: stretches that are never folded.
    """

    def __init__(self, seconds: float, busy: Iterable[tuple[float, float]]) -> None:
        self.seconds = max(seconds, 1e-6)
        self.folds: list[tuple[float, float]] = []
        merged = _merged(busy)
        whole = sum(end - start for start, end in merged)
        keep = max(_SHORTEST_FOLD, whole * _FOLD)
        edge = 0.0
        for start, end in [*merged, (self.seconds, self.seconds)] if merged else []:
            if start - edge > 2 * keep:
                self.folds.append((edge, start))
            edge = max(edge, end)
        if self.folds:  # however many there are, they leave most of the place to what was done
            keep = min(keep, max(whole, _SHORTEST_FOLD) * _FOLDS / len(self.folds))
        self.pieces = [(0.0, 0.0)]
        for start, end in self.folds:
            second, folded = self.pieces[-1]
            self.pieces.append((start, folded + start - second))
            self.pieces.append((end, folded + start - second + keep))
        second, folded = self.pieces[-1]
        self.pieces.append((self.seconds, folded + self.seconds - second))
        self.folded_seconds = max(self.pieces[-1][1], 1e-6)

    def folded(self, second: float) -> float:
        """Return where a second lies when idle time is folded, in seconds."""
        before, base = 0.0, 0.0
        for here, there in self.pieces:
            if second <= here:
                share = (second - before) / (here - before) if here > before else 0.0
                return base + share * (there - base)
            before, base = here, there
        return self.folded_seconds

    def bar(self, start: float, end: float, kind: str, words: str = "") -> Bar:
        """Return the bar of a stretch, cut to the run's own time."""
        start, end = min(max(start, 0.0), self.seconds), min(max(end, 0.0), self.seconds)
        end = max(start, end)
        at, to = start / self.seconds * 100, end / self.seconds * 100
        fold_at = self.folded(start) / self.folded_seconds * 100
        fold_to = self.folded(end) / self.folded_seconds * 100
        return Bar(
            kind,
            round(at, 4),
            round(to - at, 4),
            round(fold_at, 4),
            round(fold_to - fold_at, 4),
            end - start,
            words,
        )


def lay_out(run: RunView, children: Sequence[Child] = (), *, alive: bool = True) -> Timeline:
    """Return the bars of a run, its steps and its children; `alive` says whether its worker is."""
    origin = run.created_at

    def since(moment: datetime) -> float:
        return (moment - origin).total_seconds()

    end = since(run.finished_at or run.now)
    between = _attempts_and_between(run, since, end, alive=alive)
    busy = [(one.start, one.end) for one in between if one.kind not in _BETWEEN]
    scale = Scale(end, [*busy, *_executed(children, since, end)])
    rows = dict(_step_rows(run, since, scale))
    return Timeline(
        seconds=scale.seconds,
        attempts=tuple(scale.bar(one.start, one.end, one.kind, one.words) for one in between),
        rows=rows,
        folds=tuple(_folds(scale)),
        pieces=tuple((round(a, 3), round(b, 3)) for a, b in scale.pieces),
        folded_seconds=scale.folded_seconds,
        busy=sum(end - start for start, end in _merged(busy)),
        queued=sum(one.end - one.start for one in between if one.kind == "queue"),
        waited=sum(one.end - one.start for one in between if one.kind in ("wait", "backoff")),
        executing=_executing(run, since, scale, end, alive=alive),
        children=_children(run, children, since, scale, end),
    )


def thinned(run: RunView) -> RunView:
    """Return a run with as many earlier tries of its steps as a page can show: the last ones of each."""
    tried = [step for step in run.steps if step.earlier]
    each = max(3, _MOST_TRIES // max(len(tried), 1))
    if all(len(step.earlier) <= each for step in tried):
        return run
    return replace(run, steps=tuple(replace(step, earlier=step.earlier[-each:]) for step in run.steps))


def _attempts_and_between(run: RunView, since: Since, end: float, *, alive: bool) -> list[_Stretch]:
    found: list[_Stretch] = []
    edge, before = 0.0, ("wait" if _began_with_a_timer(run) else "queue")
    for attempt in run.attempts:
        start = since(attempt.started_at)
        if start > edge:
            found.append(_Stretch(edge, start, before, _BETWEEN[before]))
        edge = since(attempt.ended_at) if attempt.ended_at is not None else end
        kind = attempt.outcome or ("executing" if alive else "lost")
        found.append(_Stretch(start, edge, kind, f"attempt {attempt.number} on {attempt.hostname}"))
        before = {"retry": "backoff", "suspended": "wait"}.get(kind, "queue")
    if not run.state.final and end > edge:
        waits = run.stored_state is RunState.WAITING
        kind = ("backoff" if run.reason == "retry" else "wait") if waits else "queue"
        found.append(_Stretch(edge, end, kind, _BETWEEN[kind]))
    return found


_BETWEEN = {"queue": "queued for a worker", "wait": "waited", "backoff": "waited for a retry"}


def _began_with_a_timer(run: RunView) -> bool:
    return run.attempt == 0 and run.stored_state is RunState.WAITING


def _step_rows(run: RunView, since: Since, scale: Scale) -> Iterable[tuple[str, Row]]:
    unfinished = _unfinished(run, since)
    edge = 0.0
    for step in run.steps:
        if step.kind is not None:
            yield step.key, _wait_row(step, run, since, scale)
            continue
        stored = since(step.stored_at)
        bars = []
        # What an attempt did after its last checkpoint was the step that a later attempt stored next.
        while unfinished and unfinished[0][0] < step.attempt and step.outcome != "discarded":
            _, stretch = unfinished.pop(0)
            bars.append(scale.bar(stretch.start, stretch.end, stretch.kind, stretch.words))
        bars += _earlier_tries(step, since, scale, edge)
        bars.append(scale.bar(stored - step.seconds, stored, step.outcome, step.key))
        edge = max(edge, stored)
        yield step.key, Row(step.key, step.outcome, tuple(bars))


def _earlier_tries(step: StepView, since: Since, scale: Scale, edge: float) -> Iterable[Bar]:
    """Yield the tries before the last one; those that are not kept are one bar from `edge` on."""
    first = step.tries - len(step.earlier)
    begins = [since(one.at) - one.seconds for one in step.earlier]
    behind = min([*begins, since(step.stored_at) - step.seconds])
    if first > 1 and edge < behind:
        words = "one earlier try" if first == 2 else f"{first - 1} earlier tries"  # noqa: PLR2004
        yield scale.bar(edge, behind, "tries", words)
    for number, (one, begin) in enumerate(zip(step.earlier, begins, strict=True), first):
        yield scale.bar(begin, since(one.at), "try", f"try {number} failed: {one.error}")


def _wait_row(step: StepView, run: RunView, since: Since, scale: Scale) -> Row:
    """Return the row of a wait, which is stored when it begins."""
    start, now = since(step.stored_at), since(run.finished_at or run.now)
    end = start + step.seconds if step.outcome != "waiting" else now
    if step.outcome == "waiting" and step.due is not None:
        end = min(now, since(step.due))
    over = step.outcome != "waiting" or end < now
    outcome = "waited" if over and step.outcome in ("waiting", "ok") else step.outcome
    return Row(step.key, outcome, (scale.bar(start, end, "wait", f"waited, {step.kind}"),))


def _unfinished(run: RunView, since: Since) -> list[tuple[int, _Stretch]]:
    """Return what each attempt did after its last checkpoint, for those that ended before the run did."""
    latest: dict[int, float] = {}
    failed = {one.attempt for step in run.steps for one in step.earlier}
    for step in run.steps:
        if step.kind is not None:
            continue
        for number, moment in (
            (step.attempt, step.stored_at),
            *((one.attempt, one.at) for one in step.earlier),
        ):
            latest[number] = max(latest.get(number, 0.0), since(moment))
    found = []
    for attempt in run.attempts:
        if attempt.ended_at is None or attempt.outcome not in _CUT:
            continue
        if attempt.outcome == "retry" and attempt.number in failed:
            continue  # it is told by the try that failed
        start = max(since(attempt.started_at), latest.get(attempt.number, 0.0))
        words = f"{_CUT[attempt.outcome]} in attempt {attempt.number}"
        kind = "tries" if attempt.outcome == "retry" else "cut"
        found.append((attempt.number, _Stretch(start, since(attempt.ended_at), kind, words)))
    return found


_CUT = {"lost": "cut off when it lost its worker", "released": "cut off by a shutdown", "retry": "failed"}


def _executing(run: RunView, since: Since, scale: Scale, end: float, *, alive: bool) -> Bar | None:
    """Return what is executed now: everything since the latest checkpoint, or since the attempt began."""
    if run.stored_state not in (RunState.RUNNING, RunState.CANCELLING) or not run.attempts:
        return None
    start = since(run.attempts[-1].started_at)
    for step in run.steps:
        if step.attempt == run.attempts[-1].number:
            start = max(start, since(step.stored_at))
    if run.attempts[-1].ended_at is not None:
        return None
    return scale.bar(
        start, end, "executing" if alive else "lost", "executing now" if alive else "cut off here"
    )


def _executed(children: Sequence[Child], since: Since, end: float) -> Iterable[tuple[float, float]]:
    for child in children:
        if child["started_at"] is not None:
            stop = end if child["finished_at"] is None else since(child["finished_at"])
            yield max(0.0, since(child["started_at"])), max(0.0, min(stop, end))


def _children(
    run: RunView, children: Sequence[Child], since: Since, scale: Scale, end: float
) -> dict[str | None, list[Row]]:
    """Return the rows of children under the wait that started them, with which they were stored."""
    waits = {step.stored_at: step.key for step in run.steps if step.kind == "children"}
    found: dict[str | None, list[Row]] = {}
    for child in children:
        row = _child_row(child, since, scale, end)
        found.setdefault(waits.get(child["created_at"]), []).append(row)
    return found


def _child_row(child: Child, since: Since, scale: Scale, end: float) -> Row:
    begin, state = since(child["created_at"]), str(child["state"])
    stop = since(child["finished_at"]) if child["finished_at"] is not None else end
    at = since(child["started_at"]) if child["started_at"] is not None else stop
    bars = [scale.bar(begin, at, "queue", "queued")]
    if child["started_at"] is not None:
        bars.append(scale.bar(at, stop, "executing" if child["finished_at"] is None else state, state))
    return Row(str(child["task"]), state, tuple(bars), run=str(child["id"]))


def _folds(scale: Scale) -> Iterable[Fold]:
    for start, end in scale.folds:
        bar = scale.bar(start, end, "fold")
        yield Fold(bar.fold_at, bar.fold_wide, end - start)


def _merged(stretches: Iterable[tuple[float, float]]) -> list[tuple[float, float]]:
    merged: list[tuple[float, float]] = []
    for start, end in sorted(stretches):
        if merged and start <= merged[-1][1]:
            merged[-1] = (merged[-1][0], max(end, merged[-1][1]))
        else:
            merged.append((start, end))
    return merged


if TYPE_CHECKING:
    from collections.abc import Callable

    Child = dict[str, Any]
    Since = Callable[[datetime], float]
