"""The `step` decorator: any function becomes a checkpointed call, and stays itself outside a run."""

from __future__ import annotations

import difflib
import functools
import inspect
from collections.abc import Callable, Iterable
from dataclasses import dataclass, fields, replace
from typing import TYPE_CHECKING, Any, Generic, Literal, ParamSpec, TypeVar, overload

from celery_durable import context
from celery_durable.exceptions import StepUsageError
from celery_durable.retry import RetryPolicy
from celery_durable.serialization import return_annotation

if TYPE_CHECKING:
    from celery_durable.transactions import TransactionStep

P = ParamSpec("P")
R = TypeVar("R")
Options = TypeVar("Options", bound="StepOptions")


@dataclass(frozen=True)
class StepOptions(RetryPolicy):
    """A step's options: Celery's retry options, and how the call is stored.

    Attributes:
        name: the name its checkpoints are kept under; by default the function's.
        key: the key of one call, instead of the name and a counter.
        time_limit: seconds that one try may take.
        serializer: a serializer of kombu's registry, instead of the app's.
        at_most_once: mark the start first, and never start again, whatever happens.
        commit: `async` does not wait for the disk: for steps that are cheap to repeat.
    """

    name: str | None = None
    key: str | None = None
    time_limit: float | None = None
    serializer: str | None = None
    at_most_once: bool = False
    commit: Literal["sync", "async"] = "sync"

    def check(self, name: str) -> None:
        """Raise `StepUsageError` for what cannot be meant of this kind of step."""


@dataclass(frozen=True)
class StepCall:
    """A call of a step that is not made yet."""

    step: Any
    args: tuple[Any, ...]
    kwargs: dict[str, Any]

    def __call__(self) -> Any:
        """Make the call."""
        return self.step(*self.args, **self.kwargs)


class Step(Generic[P, R]):
    """A function whose calls inside a run are checkpointed."""

    def __init__(self, function: Callable[P, R], options: StepOptions) -> None:
        name: str = named(function, options.name)
        if inspect.isgeneratorfunction(function) or inspect.isasyncgenfunction(function):
            message = f"{name} is a generator: a step is a function, or an `async def` one"
            raise StepUsageError(message)
        functools.update_wrapper(self, function)
        self.function = function
        self.is_async = inspect.iscoroutinefunction(function)
        self.step_options = options
        self.name = name
        self._parameters = positional_names(function)

    def __call__(self, *args: P.args, **kwargs: P.kwargs) -> R:
        """Call the function; inside a run, return what is stored for this call if it was made before."""
        frame = context.current()
        if frame is None or frame.step is not None:
            return self.function(*args, **kwargs)
        execution = frame.execution
        perform: Any = execution.step_later if self.is_async else execution.step
        result: R = perform(frame, self, args, kwargs)
        return result

    def __get__(self, instance: object, owner: type | None = None) -> Callable[..., R]:
        if instance is None:
            return self
        bind: Any = functools.partial
        return bind(self, instance)  # type: ignore[no-any-return]

    def __repr__(self) -> str:
        return f"<step {self.name}>"

    def __reduce__(self) -> str:
        return self.function.__qualname__  # pickled by name, as the function would be

    def options(self, **options: Any) -> Step[P, R]:
        """Return this step with other options: `download.options(key="intro")(url)`."""
        return type(self)(self.function, checked(self.name, self.step_options, options))

    @property
    def transacted(self) -> TransactionStep[P, R] | None:
        """This step if it is a transaction, which stores itself."""
        return None

    def s(self, *args: P.args, **kwargs: P.kwargs) -> StepCall:
        """Return a call to be made later: `durable.gather(*(fetch.s(url) for url in urls))`."""
        return StepCall(self, args, kwargs)

    def named_arguments(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> dict[str, Any]:
        """Return the arguments by name, so that `f(1)` and `f(x=1)` are one call."""
        named: dict[str, Any] = dict(zip(self._parameters, args, strict=False))
        if len(args) > len(named):
            named["*"] = args[len(named) :]
        named.update(kwargs)
        return named

    @functools.cached_property
    def returns(self) -> Any:
        """The function's return annotation, or `MISSING`."""
        return return_annotation(self.function)


def positional_names(function: Callable[..., Any]) -> tuple[str, ...]:
    """Return the names of a function's parameters that can be given by position."""
    try:
        parameters = inspect.signature(function).parameters.values()
    except (TypeError, ValueError):
        return ()
    kinds = (inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD)
    return tuple(parameter.name for parameter in parameters if parameter.kind in kinds)


def named(function: Callable[..., Any], chosen: Any) -> Any:
    """Return the name of a function's step; raise `StepUsageError` for what has none, or is none."""
    told: Any = function
    if not callable(told):
        message = (
            f"step or transaction is given no function, but {told!r}: it is put on one, with its options by "
            f"name, as in @step(max_retries=5)"
        )
        raise StepUsageError(message)
    name = chosen or getattr(function, "__name__", None)
    if name is None:
        message = f"{function!r} has no name of its own: give the step one, step(…, name='charge')"
        raise StepUsageError(message)
    return name


def checked(name: str, base: Options, options: dict[str, Any]) -> Options:
    """Return `base` with other options, after a look at each of them."""
    known = {field.name for field in fields(base)}
    for option in options:
        if option not in known:
            near = difflib.get_close_matches(option, known, n=1)
            hint = f"did you mean {near[0]!r}?" if near else f"there are: {', '.join(sorted(known))}"
            message = f"Step {name!r} has no option {option!r}; {hint}"
            raise StepUsageError(message)
    for option in ("autoretry_for", "dont_autoretry_for"):
        if option in options:
            options[option] = _exceptions(name, option, options[option])
    if options.get("max_retries") and not (base.autoretry_for or "autoretry_for" in options):
        # Asking for retries without saying of what means: of any error.
        options["autoretry_for"] = (Exception,)
    chosen = replace(base, **options)
    _check(name, chosen)
    chosen.check(name)
    return chosen


def _is_number(value: Any) -> bool:
    """Whether it is a number from 0 on that means seconds."""
    return isinstance(value, (int, float)) and not isinstance(value, bool) and 0 <= value < float("inf")


def _is_count(value: Any) -> bool:
    return isinstance(value, int) and _is_number(value)


_SECONDS = "not a number of seconds, from 0 on"
_CHECKS: tuple[tuple[str, Callable[[Any], bool], str], ...] = (
    ("max_retries", lambda value: value is None or _is_count(value), "neither a number of retries nor None"),
    ("default_retry_delay", _is_number, _SECONDS),
    (
        "retry_backoff",
        lambda value: isinstance(value, bool) or _is_number(value),
        f"neither True nor False, and {_SECONDS}",
    ),
    ("retry_backoff_max", _is_number, _SECONDS),
    ("retry_jitter", lambda value: isinstance(value, bool), "neither True nor False"),
    ("at_most_once", lambda value: isinstance(value, bool), "neither True nor False"),
    ("commit", lambda value: value in ("sync", "async"), "neither 'sync' nor 'async'"),
    (
        "time_limit",
        lambda value: value is None or (_is_number(value) and value > 0),
        "not a positive number of seconds",
    ),
    (
        "serializer",
        lambda value: value is None or (isinstance(value, str) and value != ""),
        "not the name of a serializer",
    ),
)


def _check(name: str, chosen: StepOptions) -> None:
    for option in ("name", "key"):
        value = getattr(chosen, option)
        if value is not None and not (isinstance(value, str) and value and value.isprintable()):
            message = f"Step {name!r}: {option}={value!r} is not a printable, non-empty string"
            raise StepUsageError(message)
    for option, fits, words in _CHECKS:
        value = getattr(chosen, option)
        if not fits(value):
            message = f"Step {name!r}: {option}={value!r} is {words}"
            raise StepUsageError(message)
    if chosen.at_most_once and chosen.autoretry_for:
        message = f"Step {name!r}: at_most_once steps are never retried; take away its retry options"
        raise StepUsageError(message)


def _exceptions(name: str, option: str, value: Any) -> tuple[type[BaseException], ...]:
    several = isinstance(value, Iterable) and not isinstance(value, type)
    values = tuple(value) if several else (value,)
    if not all(isinstance(one, type) and issubclass(one, BaseException) for one in values):
        message = f"Step {name!r}: {option}={value!r} is not made of exception classes"
        raise StepUsageError(message)
    return values


@overload
def step(function: Callable[P, R], /, **options: Any) -> Step[P, R]: ...
@overload
def step(**options: Any) -> Callable[[Callable[P, R]], Step[P, R]]: ...
def step(function: Callable[..., Any] | None = None, /, **options: Any) -> Any:
    """Make a function a step: its result is stored once per run and returned at every replay.

    Options are those of `StepOptions`; the retry options have Celery's names and meanings. `max_retries`
    without `autoretry_for` retries any error.

    Raises `StepUsageError` for an option that does not exist or cannot be meant.

    >>> @step(max_retries=5, retry_backoff=True)
    ... def double(number: int) -> int:
    ...     return 2 * number
    >>> double(21)
    42
    """

    def decorate(function: Callable[..., Any]) -> Step[..., Any]:
        return Step(function, checked(named(function, options.get("name")), StepOptions(), dict(options)))

    return decorate if function is None else decorate(function)
