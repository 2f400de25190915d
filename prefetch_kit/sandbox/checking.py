"""JSON values checked against the parameters of the function that will receive them."""

import inspect
from collections.abc import Callable, Mapping
from types import NoneType, UnionType
from typing import Any, Final, Literal, get_args, get_origin, get_type_hints

from prefetch_kit.sandbox.errors import SandboxError

# Far beyond any use, and small enough that no arithmetic on it overflows.
_MAX_NUMBER: Final = 10**9

_WORDS: Final = {
    str: "a string",
    int: "a whole number",
    float: "a number",
    bool: "true or false",
    NoneType: "null",
}


def check_arguments(function: Callable[..., object], given: Mapping[str, Any]) -> dict[str, Any]:
    """The keyword arguments for `function`; raises SandboxError naming the key that is wrong."""
    hints = get_type_hints(function)
    parameters = list(inspect.signature(function).parameters.values())[1:]
    names = [parameter.name for parameter in parameters]
    for name in given.keys() - names:
        raise SandboxError(f"{name!r} is not known here: use {', '.join(names) or 'no key'}.")
    for parameter in parameters:
        if parameter.name not in given and parameter.default is parameter.empty:
            raise SandboxError(f"{parameter.name!r} is missing: add it to the JSON body.")
    for name, value in given.items():
        if not fits(value, hints[name]):
            raise SandboxError(f"{name!r} has the wrong value: it must be {wanted(hints[name])}.")
    return dict(given)


def fits(value: object, hint: Any) -> bool:
    """Whether a JSON value is what the type hint asks for; true is no number, 1 no boolean."""
    origin = get_origin(hint)
    if origin is Literal:
        return any(type(value) is type(each) and value == each for each in get_args(hint))
    if origin is UnionType:
        return any(fits(value, each) for each in get_args(hint))
    if origin is list:
        return isinstance(value, list) and all(fits(each, get_args(hint)[0]) for each in value)
    if origin is Mapping:
        return isinstance(value, dict) and all(fits(v, get_args(hint)[1]) for v in value.values())
    if hint is object:
        return True
    if hint is float:
        return fits(value, int) or (type(value) is float and abs(value) < _MAX_NUMBER)
    if hint is int:
        return type(value) is int and abs(value) < _MAX_NUMBER
    if hint is str:
        return isinstance(value, str) and not any("\ud800" <= char <= "\udfff" for char in value)
    return type(value) is hint


def wanted(hint: Any) -> str:
    """The type hint in words."""
    origin = get_origin(hint)
    if origin is Literal:
        return " or ".join(map(repr, get_args(hint)))
    if origin is UnionType:
        return " or ".join(wanted(each) for each in get_args(hint) if each is not bytes)
    if origin is list:
        return f"a list, each {wanted(get_args(hint)[0])}"
    return _WORDS.get(hint, "an object")
