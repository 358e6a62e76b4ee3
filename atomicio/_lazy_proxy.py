"""The stand-in for one name of a lazy star import on Python 3.11 to 3.14; Python 3.15 has ``lazy from`` itself."""

import builtins
import copy
import math
import operator
import os
import types

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Mapping
    from typing import Any


class LazyName:
    """What is done to it is done to the real object; `load` imports the module and returns its star's values.

    It cannot hide from ``is``, ``except``, ``callable()``, a class pattern and C code that looks at the exact type.
    """

    __slots__ = ("_load", "_name")

    def __init__(self, load: "Callable[[], Mapping[str, Any]]", name: str) -> None:
        object.__setattr__(self, "_load", load)
        object.__setattr__(self, "_name", name)

    def __getattribute__(self, attribute: str) -> "Any":
        if attribute in ("__mro_entries__", "__reduce_ex__", "__deepcopy__"):  # class, pickle and copy
            return object.__getattribute__(self, attribute)
        value = getattr(real(self), attribute)
        return (real(self),) if attribute == "__bases__" else value  # so that issubclass() comes to the real class

    def __reduce_ex__(self, protocol: "Any") -> "Any":
        return operator.itemgetter(0), ((real(self),),)  # the pickle names the real object, never this library

    def __mro_entries__(self, bases: object) -> "tuple[type, ...]":
        return types.resolve_bases((real(self),))

    def __get__(self, instance: object, owner: "type | None" = None) -> "Any":  # a function in a class is a method
        bind = getattr(type(real(self)), "__get__", None)
        return bind(real(self), instance, owner) if bind else real(self)


def real(proxy: LazyName) -> "Any":
    """Return the object itself; what the import raises is raised, and it is tried again at the next use."""
    load, name = object.__getattribute__(proxy, "_load"), object.__getattribute__(proxy, "_name")
    try:
        return load()[name]
    except (AttributeError, KeyError) as error:  # as it is, hasattr() at the point of use would swallow the first
        raise ImportError(f"cannot import name {name!r}: {error!r}", name=name) from error


def _forward(method: str, function: "Callable[..., Any] | None" = None, *, reflected: bool = False) -> None:
    def forward(self: LazyName, /, *args: "Any", **kwargs: "Any") -> "Any":
        call = function or getattr(type(real(self)), method)
        return call(*args, real(self)) if reflected else call(real(self), *args, **kwargs)

    setattr(LazyName, method, forward)


# Built-in functions and operators find a special method where the interpreter does, on the type; getattr() would not.
for _module, _names in {
    builtins: "abs aiter anext bool bytes complex delattr dir divmod float format hash int iter len next pow repr "
    "reversed round setattr str",
    operator: "call contains delitem getitem setitem index length_hint neg pos invert eq ne lt le gt ge",
    **{math: "ceil floor trunc", copy: "copy deepcopy", os: "fspath"},  # noqa: PIE800
}.items():
    for _name in _names.split():
        _forward(f"__{_name}__", getattr(_module, _name))
for _name in "add sub mul matmul truediv floordiv mod lshift rshift and_ xor or_ pow".split():  # noqa: SIM905
    _forward(f"__{_name.strip('_')}__", pow if _name == "pow" else getattr(operator, _name))
    _forward(f"__r{_name.strip('_')}__", getattr(operator, _name), reflected=True)
    _forward(f"__i{_name.strip('_')}__", getattr(operator, "i" + _name.strip("_")))
for _name in ("__enter__", "__exit__", "__aenter__", "__aexit__", "__await__"):
    _forward(_name)
_forward("__rdivmod__", divmod, reflected=True)
_forward("__instancecheck__", isinstance, reflected=True)
_forward("__subclasscheck__", issubclass, reflected=True)
