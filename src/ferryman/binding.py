"""A function's parameters as a msgspec struct: checks a call, writes it down, and calls again from bytes.

Arguments are stored as a map from parameter to value, so that people can read and edit them and a task
can gain a parameter with a default while old jobs wait.
"""

from __future__ import annotations

import inspect
import typing
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import msgspec

from ferryman.codec import Codec
from ferryman.errors import BadArguments, PayloadError

__all__ = ["Binding", "bind_by_name"]

_UNSET = msgspec.UNSET


class Binding:
    """How one function is called. Immutable once made; thread-safe."""

    __slots__ = (
        "_arguments",
        "_codec",
        "_decode",
        "_decode_result",
        "_label",
        "_plain",
        "_signature",
        "context_parameter",
        "context_type",
    )

    def __init__(self, function: Callable[..., Any], codec: Codec, context_type: type, label: str) -> None:
        self._codec = codec
        self._label = label
        hints = _type_hints(function)
        signature = inspect.signature(function)
        self.context_parameter: str | None = None
        self.context_type: type | None = None
        """Of the parameter, which may be a kind of `context_type`."""
        for name in signature.parameters:
            hint = hints.get(name)
            if isinstance(hint, type) and issubclass(hint, context_type):
                self.context_parameter, self.context_type = name, hint
                break
        parameters = [p for p in signature.parameters.values() if p.name != self.context_parameter]
        self._signature = signature.replace(parameters=parameters)
        self._plain = all(p.kind is p.POSITIONAL_OR_KEYWORD for p in parameters)
        """Then the struct itself checks calls, in C, and its fields are the positional arguments."""
        self._arguments = _arguments_struct(label, parameters, hints)
        self._decode = codec.decoder(self._arguments)
        self._decode_result = codec.decoder(hints.get("return", Any))

    def encode(self, args: Sequence[Any], kwargs: Mapping[str, Any]) -> bytes:
        """Bytes of a call. Raises BadArguments or PayloadError if the task could not be called with them."""
        try:
            if self._plain:
                payload = self._codec.encode(self._arguments(*args, **kwargs))
            else:
                bound = self._signature.bind(*args, **kwargs)
                payload = self._codec.encode(self._arguments(**bound.arguments))
        except TypeError as error:
            raise BadArguments(
                f"{self._label}{self._signature} cannot be called like this: {error}"
            ) from error
        except PayloadError as error:
            raise PayloadError(f"the arguments of {self._label}: {error}") from error
        try:
            self._decode(payload)
        except PayloadError as error:
            raise BadArguments(f"the arguments do not fit {self._label}{self._signature}: {error}") from error
        return payload

    def decode(self, payload: bytes) -> tuple[Sequence[Any], dict[str, Any]]:
        """The call that bytes stand for. Raises PayloadError."""
        arguments = self._decode(payload)
        values = msgspec.structs.astuple(arguments)
        if self._plain and _UNSET not in values:
            return values, {}
        return self._unbind(arguments)

    def decode_result(self, result: bytes) -> Any:
        """The value that the function returned, as annotated. Raises PayloadError."""
        return self._decode_result(result)

    def arguments(self, args: Sequence[Any], kwargs: Mapping[str, Any]) -> dict[str, Any]:
        """The call as a map from parameter to value, defaults included."""
        bound = self._signature.bind(*args, **kwargs)
        bound.apply_defaults()
        return bound.arguments

    def _unbind(self, arguments: Any) -> tuple[Sequence[Any], dict[str, Any]]:
        args: list[Any] = []
        kwargs: dict[str, Any] = {}
        positional = True
        for parameter in self._signature.parameters.values():
            value = getattr(arguments, parameter.name)
            if value is _UNSET:
                # From here on by name, so that the function's own default fills the gap.
                positional = positional and parameter.kind is parameter.VAR_POSITIONAL
            elif parameter.kind is parameter.VAR_POSITIONAL:
                args.extend(value)
            elif parameter.kind is parameter.VAR_KEYWORD:
                kwargs.update(value)
            elif positional and parameter.kind is not parameter.KEYWORD_ONLY:
                args.append(value)
            else:
                kwargs[parameter.name] = value
        return args, kwargs


def bind_by_name(codec: Codec, label: str, args: Sequence[Any], kwargs: Mapping[str, Any]) -> bytes:
    """Bytes of a call of a task that this program does not have; only names can be used then."""
    if args:
        raise BadArguments(
            f"this program does not know the parameters of {label!r}; name the arguments: "
            f"enqueue({label!r}, parameter=value)"
        )
    try:
        return codec.encode(kwargs)
    except PayloadError as error:
        raise PayloadError(f"the arguments of {label}: {error}") from error


def _arguments_struct(label: str, parameters: Sequence[inspect.Parameter], hints: Mapping[str, Any]) -> Any:
    fields: list[Any] = []
    for parameter in parameters:
        annotation: Any = hints.get(parameter.name, Any)  # not a type to the type checker
        if parameter.kind is parameter.VAR_POSITIONAL:
            fields.append((parameter.name, list[annotation] | msgspec.UnsetType, _UNSET))
        elif parameter.kind is parameter.VAR_KEYWORD:
            fields.append((parameter.name, dict[str, annotation] | msgspec.UnsetType, _UNSET))
        elif parameter.default is parameter.empty:
            fields.append((parameter.name, annotation))
        else:
            # `annotation` may be a string or a special form, for which `|` is not defined.
            fields.append((parameter.name, typing.Union[annotation, msgspec.UnsetType], _UNSET))  # noqa: UP007
    plain = all(p.kind is p.POSITIONAL_OR_KEYWORD for p in parameters)
    return msgspec.defstruct(
        label.rpartition(".")[2].strip("<>") or "Arguments",
        fields,
        forbid_unknown_fields=True,
        omit_defaults=True,
        kw_only=not plain,
    )


def _type_hints(function: Callable[..., Any]) -> dict[str, Any]:
    try:
        return typing.get_type_hints(function, include_extras=True)
    except (NameError, TypeError, AttributeError):
        # Annotations that exist for the type checker alone are not checked at run time, the others are.
        return {
            name: annotation
            for name, annotation in getattr(function, "__annotations__", {}).items()
            if not isinstance(annotation, str)
        }
