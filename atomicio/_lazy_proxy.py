"""The stand-ins for a star's names on Python 3.11 to 3.14; Python 3.15 has ``lazy from`` itself."""

from __future__ import annotations

import builtins
import copy
import math
import operator
import os
import types

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Any


class LazyName:
    """What is done to it is done to the `name` of the `module`, which the first use imports; `used` is called then.

    It cannot hide from ``is``, ``except``, ``callable()``, a class pattern and C code that looks at the exact type.
    """

    __slots__ = ("_star",)

    def __init__(self, module: str, name: str, used: Callable[[], object]) -> None:
        object.__setattr__(self, "_star", (module, name, used))

    def __getattribute__(self, attribute: str) -> Any:
        if attribute in ("__mro_entries__", "__reduce_ex__", "__deepcopy__"):  # class, pickle and copy
            return object.__getattribute__(self, attribute)
        value = getattr(real(self), attribute)
        return (real(self),) if attribute == "__bases__" else value  # so that issubclass() comes to the real class

    def __get__(self, instance: object, owner: type | None = None) -> Any:  # a function in a class is a method
        return real(self).__get__(instance, owner) if hasattr(type(real(self)), "__get__") else real(self)


def real(proxy: LazyName) -> Any:
    """Return the object itself; what the import raises is raised, and it is tried again at the next use."""
    module, name, used = object.__getattribute__(proxy, "_star")
    try:
        value = getattr(__import__(module, None, None, [name]), name)
    except (AttributeError, KeyError) as error:  # as it is, hasattr() at the point of use would swallow the first
        raise ImportError(f"cannot import name {name!r} from {module!r}: {error!r}", name=name) from error
    used()
    return value


def _forward(method: str, function: Callable[[Any, Any], Any] | None, *, reflected: bool = False) -> None:
    def forward(self: LazyName, /, *args: Any, **kwargs: Any) -> Any:
        value = real(self)
        call: Any = function or getattr(type(value), method)
        return call(*args, value) if reflected else call(value, *args, **kwargs)

    setattr(LazyName, method, forward)


# Built-in functions and operators find a special method where the interpreter does, on the type; getattr() would not.
_BINARY = "add sub mul matmul truediv floordiv mod lshift rshift and_ xor or_ pow".split()  # noqa: SIM905
for _module, _names in {
    builtins: "abs aiter anext bool bytes complex delattr dir divmod float format hash int iter len next pow repr "
    "reversed round setattr str",
    operator: "call contains delitem getitem setitem index length_hint neg pos invert eq ne lt le gt ge "
    + " ".join([*_BINARY[:-1], *(f"i{_name.strip('_')}" for _name in _BINARY)]),
    math: "ceil floor trunc",
    copy: "copy deepcopy",
    os: "fspath",
    types: "enter exit aenter aexit await",  # which no function calls
}.items():
    for _name in _names.split():
        _forward(f"__{_name.strip('_')}__", getattr(_module, _name, None))
for _name in _BINARY:
    _forward(f"__r{_name.strip('_')}__", getattr(operator, _name), reflected=True)
_forward("__rdivmod__", divmod, reflected=True)
_forward("__instancecheck__", isinstance, reflected=True)
_forward("__subclasscheck__", issubclass, reflected=True)
_forward("__mro_entries__", lambda value, _bases: types.resolve_bases((value,)))
_forward("__reduce_ex__", lambda value, _protocol: (operator.itemgetter(0), ((value,),)))  # names no library of ours
