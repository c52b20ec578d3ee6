"""Bindings: a call is checked, written down and called again as it was."""

from __future__ import annotations

import dataclasses
import datetime
from typing import Annotated, Any

import msgspec
import pytest

from ferryman.binding import Binding, bind_by_name
from ferryman.codec import Codec
from ferryman.context import Context
from ferryman.errors import BadArguments, PayloadError


@dataclasses.dataclass
class Address:
    street: str


def plain(a: int, b: str = "x") -> None: ...
def typed(to: Address, at: datetime.datetime, tags: set[str]) -> None: ...
def starred(*numbers: int, **words: str) -> None: ...
def mixed(a: int, /, b: int = 2, *rest: int, c: int, d: int = 4, **more: int) -> None: ...
def untyped(a, b=None):  # type: ignore[no-untyped-def]
    ...
def contextual(ctx: Context, a: int) -> int: ...  # type: ignore[empty-body]
def context_last(a: int, *, ctx: Context) -> None: ...
def bounded(n: Annotated[int, msgspec.Meta(ge=0)]) -> None: ...
def checker_only(a: int, b: Nowhere) -> None: ...  # type: ignore[name-defined]  # noqa: F821
def nothing() -> None: ...


def bind(function: Any) -> Binding:
    return Binding(function, Codec(), Context, f"tasks.{function.__name__}")


def there_and_back(function: Any, *args: Any, **kwargs: Any) -> Any:
    binding = bind(function)
    return binding.decode(binding.encode(args, kwargs))


def replay(function: Any, *args: Any, **kwargs: Any) -> Any:
    """What the function's parameters are when it is called from the bytes."""
    decoded_args, decoded_kwargs = there_and_back(function, *args, **kwargs)
    binding = bind(function)
    return binding.arguments(decoded_args, decoded_kwargs)


@pytest.mark.parametrize(
    ("function", "args", "kwargs"),
    [
        (nothing, (), {}),
        (plain, (1,), {}),
        (plain, (1, "y"), {}),
        (plain, (), {"b": "y", "a": 1}),
        (starred, (), {}),
        (starred, (1, 2), {"x": "y"}),
        (mixed, (1,), {"c": 3}),
        (mixed, (1, 5), {"c": 3}),
        (mixed, (1, 5, 6, 7), {"c": 3, "d": 8, "e": 9}),
        (mixed, (1,), {"b": 5, "c": 3}),
        (untyped, ([1, {"a": 2}],), {}),
        (contextual, (1,), {}),
        (context_last, (1,), {}),
        (checker_only, (1, "anything"), {}),
    ],
)
def test_a_call_arrives_as_it_was_made(function: Any, args: Any, kwargs: Any) -> None:
    assert replay(function, *args, **kwargs) == bind(function).arguments(args, kwargs)


def test_arguments_arrive_as_annotated() -> None:
    now = datetime.datetime(2024, 1, 1, tzinfo=datetime.UTC)

    args, kwargs = there_and_back(typed, Address("High St"), now, {"a"})

    assert (tuple(args), kwargs) == ((Address("High St"), now, {"a"}), {})


@pytest.mark.parametrize(
    ("function", "args", "kwargs", "reason"),
    [
        (plain, (), {}, "Missing required argument 'a'"),
        (plain, (1, "x", 3), {}, "positional"),
        (plain, (1,), {"c": 1}, "c"),
        (plain, ("one",), {}, "Expected `int`, got `str`"),
        (mixed, (1,), {}, "missing a required argument: 'c'"),
        (bounded, (-1,), {}, "Expected `int` >= 0"),
        (starred, ("x",), {}, "Expected `int`"),
    ],
)
def test_a_call_that_does_not_fit_is_refused_with_the_signature(
    function: Any, args: Any, kwargs: Any, reason: str
) -> None:
    with pytest.raises(BadArguments) as caught:
        bind(function).encode(args, kwargs)

    assert f"tasks.{function.__name__}(" in str(caught.value)
    assert reason in str(caught.value)


def test_arguments_without_an_encoding_are_refused() -> None:
    with pytest.raises(PayloadError, match=r"the arguments of tasks\.untyped: cannot be encoded"):
        bind(untyped).encode((object(),), {})


def test_a_parameter_that_came_later_takes_its_default_in_old_jobs() -> None:
    def before(a: int) -> None: ...
    def after(a: int, b: int = 7) -> None: ...

    old = bind(before).encode((1,), {})
    binding = bind(after)

    assert binding.arguments(*binding.decode(old)) == {"a": 1, "b": 7}


def test_a_parameter_that_is_gone_is_an_error() -> None:
    with pytest.raises(PayloadError, match="unknown field"):
        bind(nothing).decode(bind(plain).encode((1, "y"), {}))


def test_a_context_is_the_workers_to_give() -> None:
    binding = bind(contextual)

    assert binding.context_parameter == "ctx"
    assert binding.arguments((1,), {}) == {"a": 1}
    assert bind(plain).context_parameter is None


def test_arguments_are_stored_by_name() -> None:
    assert Codec().decoder(Any)(bind(plain).encode((1, "y"), {})) == {"a": 1, "b": "y"}


def test_results_arrive_as_annotated() -> None:
    with pytest.raises(PayloadError):
        bind(contextual).decode_result(Codec().encode("text"))
    assert bind(contextual).decode_result(Codec().encode(3)) == 3


def test_a_task_known_by_name_alone_is_called_by_names() -> None:
    payload = bind_by_name(Codec(), "tasks.plain", (), {"a": 1})

    binding = bind(plain)
    assert binding.arguments(*binding.decode(payload)) == {"a": 1, "b": "x"}
    with pytest.raises(BadArguments, match="name the arguments"):
        bind_by_name(Codec(), "tasks.plain", (1,), {})
