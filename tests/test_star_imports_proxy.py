"""The proxies of Python 3.11 to 3.14: what is done to one is done to the real object."""

from __future__ import annotations

import abc
import asyncio
import collections
import contextlib
import copy
import decimal
import enum
import fractions
import inspect
import io
import itertools
import math
import operator
import os  # noqa: F401 - in the expressions
import pathlib
import pickle
import sys
import types
from typing import Any, Generic, TypeVar

import pytest

from atomicio._lazy_proxy import LazyName

if sys.version_info >= (3, 15):
    pytest.skip("Python 3.15 has lazy imports of its own: no proxy is ever made", allow_module_level=True)

T = TypeVar("T")


class Meta(type):
    def __call__(cls, *args: Any) -> Any:
        return (cls.__name__, *super().__call__(*args).args)

    def __iter__(cls) -> Any:
        return iter((1, 2))

    def __len__(cls) -> int:
        return 2

    def __contains__(cls, item: object) -> bool:
        return item == 1


class Made(metaclass=Meta):
    def __init__(self, *args: Any) -> None:
        self.args = args


class Base:
    attribute = "base"

    def __init_subclass__(cls, **kwargs: Any) -> None:
        cls.registered = kwargs  # type: ignore[attr-defined]


class Box(Generic[T]):
    pass


class Abstract(abc.ABC):
    @abc.abstractmethod
    def work(self) -> int: ...


class Color(enum.Enum):
    RED = 1


class Vector:
    def __init__(self, *numbers: float) -> None:
        self.numbers = numbers

    def __matmul__(self, other: Any) -> Any:
        return ("matmul", other)

    def __rmatmul__(self, other: Any) -> Any:
        return ("rmatmul", other)

    def __imatmul__(self, other: Any) -> Any:
        return ("imatmul", other)

    def __bytes__(self) -> bytes:
        return b"vector"

    def __complex__(self) -> complex:
        return 1j

    def __length_hint__(self) -> int:
        return 42


class Manager:
    def __enter__(self) -> str:
        return "entered"

    def __exit__(self, *error: object) -> bool:
        return error[0] is KeyError

    async def __aenter__(self) -> str:
        return "async entered"

    async def __aexit__(self, *error: object) -> bool:
        return True


def function(x: int = 1, *, y: int = 2) -> int:
    """Add."""
    return x + y


STARS: Any = types.ModuleType("lazy_test_stars")
sys.modules["lazy_test_stars"] = STARS
NUMBERS = itertools.count()


def lazy(value: Any) -> Any:
    name = f"name{next(NUMBERS)}"
    setattr(STARS, name, value)
    return LazyName("lazy_test_stars", name, lambda: None)


LIST = [3, 1, 2]
# fmt: off
EXPRESSIONS = [
    *((function, e) for e in ("p()", "p(5, y=7)", "p.__name__")),
    *((function, e) for e in ("p.__doc__", "str(sig(p))", "isfunction(p)", "p.__module__")),
    *((5, e) for e in ("p + 1", "1 + p", "p - 1", "1 - p", "p * 2", "2 * p", "p / 2", "2 / p", "p // 2", "7 // p")),
    *((5, e) for e in ("p % 3", "7 % p", "p ** 2", "2 ** p", "pow(p, 2, 7)", "divmod(p, 2)", "divmod(7, p)", "p << 1")),
    *((5, e) for e in ("1 << p", "p >> 1", "99 >> p", "p & 4", "4 & p", "p | 8")),
    *((5, e) for e in ("8 | p", "p ^ 1", "1 ^ p", "-p", "+p", "~p")),
    *((5, e) for e in ("abs(p)", "int(p)", "float(p)", "complex(p)")),
    *((5, e) for e in ("hash(p)", "bool(p)", "str(p)", "repr(p)", "f'{p:05d}'")),
    *((5, e) for e in ("[0] * p", "range(p)", "hex(p)", "p == 5", "5 == p")),
    *((5, e) for e in ("p != 5", "p < 6", "6 > p", "p <= 5", "p >= 5")),
    *((5, e) for e in ("isinstance(p, int)", "isinstance(p, str)", "p.bit_length()")),
    *((5, e) for e in ("p.real", "LIST[p - 4]", "{p: 1}[5]")),
    *((5, e) for e in ("p in {5}", "round(p)", "p + p", "type(p + 0)", "p is p", "math.sqrt(p)", "'%d' % p")),
    *((2.55, e) for e in ("round(p, 1)", "round(p)", "math.floor(p)", "math.ceil(p)", "math.trunc(p)", "f'{p:.1f}'")),
    *((decimal.Decimal("2.5"), e) for e in ("p + 1", "1 + p", "p.quantize(1)", "divmod(p, 2)", "p == 2.5")),
    *((fractions.Fraction(1, 3), e) for e in ("p + 1", "1 / p", "p.denominator", "round(p, 2)")),
    *(("text", e) for e in ("p + '!'", "p[0]", "p[1:]", "len(p)")),
    *(("text", e) for e in ("'e' in p", "list(p)", "p.upper()", "p % ()", "p * 2")),
    *(("text", e) for e in ("sorted(p)", "f'{p!r:>9}'", "f'{p:>9}'", "isinstance(p, str)", "p == 'text'", "dir(p)")),
    *((LIST, e) for e in ("p[0]", "p[-1]", "list(p)", "len(p)")),
    *((LIST, e) for e in ("1 in p", "p + [4]", "list(reversed(p))", "sorted(p)", "p == LIST")),
    *((LIST, e) for e in ("operator.length_hint(p)", "[*p]")),
    *((LIST, e) for e in ("p.index(2)", "iter(p).__length_hint__()", "p is LIST or p == LIST")),
    *(({"k": "v"}, e) for e in ("p['k']", "dict(p)", "{**p}", "'k' in p")),
    *(({"k": "v"}, e) for e in ("p | {}", "list(p)", "list(p.items())", "p.get('k')")),
    *((Vector(1), e) for e in ("p @ 1", "1 @ p", "bytes(p)")),
    *((Vector(1), e) for e in ("complex(p)", "operator.length_hint(p)", "p.numbers", "bool(p)")),
    *((Made, e) for e in ("p(1, 2)", "list(p)", "len(p)")),
    *((Made, e) for e in ("1 in p", "p.__name__", "isinstance(p, type)", "issubclass(p, Made)")),
    *((Color, e) for e in ("list(p)", "p.RED", "p(1)", "p['RED']", "len(p)", "p.RED in p")),
    *((Base, e) for e in ("p.attribute", "isinstance(p(), p)")),
    *((Base, e) for e in ("isinstance(p(), Base)", "isinstance(3, p)", "issubclass(bool, p)")),
    *((Base, e) for e in ("inspect.isclass(p)", "isinstance(p, type)", "p.__mro__")),
    *((Base, e) for e in ("p | None", "p == Base", "Base == p", "hash(p)")),
    *((int, e) for e in ("p('7')", "issubclass(bool, p)")),
    *((int, e) for e in ("isinstance(True, p)", "isinstance('', (p, str))", "list[p] == list[int]")),
    *((list, e) for e in ("p[int]", "p((1, 2))", "p | None", "p.__name__")),
    *((Box, e) for e in ("p[int]", "p[int]()is None")),
    *((Abstract, e) for e in ("p.__abstractmethods__", "isinstance(3, p)")),
    *((pathlib.PurePosixPath("a/b"), e) for e in ("os.fspath(p)", "p / 'c'")),
    *((pathlib.PurePosixPath("a/b"), e) for e in ("'z' / p", "p.name", "os.path.join(p, 'd')")),
    *((operator.attrgetter("real"), e) for e in ("p(5)", "list(map(p, [1]))")),
    *((collections.deque([1, 2]), e) for e in ("p[0]", "list(reversed(p))")),
    *((collections.deque([1, 2]), e) for e in ("len(p)", "copy.copy(p)", "copy.deepcopy(p)")),
    *((math, e) for e in ("p.pi", "p.sqrt(4)", "inspect.ismodule(p)", "isinstance(p, type(os))")),
    *((None, e) for e in ("p == None", "bool(p)", "str(p)", "isinstance(p, type(None))")),
]
# fmt: on


@pytest.mark.parametrize(("value", "expression"), EXPRESSIONS, ids=[f"{e}-{type(v).__name__}" for v, e in EXPRESSIONS])
def test_expression(value: Any, expression: str) -> None:
    space = {**globals(), "sig": inspect.signature, "isfunction": inspect.isfunction}
    expected = eval(expression, {**space, "p": value})
    got = eval(expression, {**space, "p": lazy(value)})
    assert type(got) is type(expected)
    assert got == expected


INPLACE = ["+= [4]", "*= 2", "|= {'z': 1}", "-= 1", "/= 2", "//= 2", "%= 2", "**= 2", "<<= 1", ">>= 1", "&= 1", "^= 1"]
INPLACE += ["@= 1"]


@pytest.mark.parametrize("statement", INPLACE)
def test_in_place_operators_change_the_real_object(statement: str) -> None:
    values = {"+= [4]": [1], "*= 2": [1], "|= {'z': 1}": {"a": 1}, "@= 1": Vector()}
    for make in (lambda: copy.copy(values.get(statement, 6)),):
        mine, theirs = make(), make()
        space, expected = {"p": lazy(mine)}, {"p": theirs}
        exec(f"p {statement}", space)
        exec(f"p {statement}", expected)
        assert type(space["p"]) is type(expected["p"])
        assert space["p"] == expected["p"]
        assert (space["p"] is mine) == (expected["p"] is theirs)


def test_items_and_attributes_are_set_on_the_real_object() -> None:
    value, thing = {"a": 1}, Base()
    lazy(value)["b"] = 2
    del lazy(value)["a"]
    assert value == {"b": 2}
    lazy(thing).x = 1
    assert thing.x == 1  # type: ignore[attr-defined]
    del lazy(thing).x
    assert not hasattr(thing, "x")
    assert not hasattr(lazy(thing), "x")
    with pytest.raises(AttributeError, match="no attribute 'y'"):
        _ = lazy(thing).y


@pytest.mark.parametrize("base", [Base, list, Made, Abstract, Exception, dict, collections.OrderedDict])
def test_class_statement_subclasses_the_real_class(base: Any) -> None:
    class Sub(lazy(base)):  # type: ignore[misc]
        pass

    assert Sub.__mro__[:2] == (Sub, base)
    assert Sub.__bases__ == (base,)
    assert type(Sub) is type(base)
    assert issubclass(Sub, lazy(base))
    assert isinstance(Sub, type)


def test_class_statement_with_keywords_several_bases_and_generics() -> None:
    class Sub(lazy(Base), lazy(dict), option=1):  # type: ignore[misc]
        pass

    assert (Sub.__bases__, Sub.registered) == ((Base, dict), {"option": 1})

    class Generic2(lazy(Box)[int]):  # type: ignore[misc]
        pass

    assert Generic2.__mro__[1] is Box

    class Counted(lazy(Box[int])):  # type: ignore[misc]
        pass

    assert Counted.__mro__[1] is Box
    with pytest.raises(TypeError):

        class Wrong(lazy(5)):  # type: ignore[misc]
            pass


def test_function_put_into_a_class_is_a_method() -> None:
    class Holder:
        method = lazy(lambda self, x: (self, x))
        plain = lazy(7)
        static = lazy(len)

    holder = Holder()
    assert holder.method(1) == (holder, 1)
    assert holder.plain == 7
    assert holder.static([1]) == 1


def test_with_and_async() -> None:
    with lazy(Manager()) as value:
        assert value == "entered"
    with lazy(Manager()):
        raise KeyError
    with pytest.raises(ValueError, match="out"), lazy(Manager()):
        raise ValueError("out")

    async def answer() -> int:
        return 42

    async def count() -> Any:
        for i in range(3):
            yield i

    async def main() -> Any:
        async with lazy(Manager()) as value:
            first = value
        async with lazy(Manager()):
            raise LookupError
        return first, await lazy(answer()), [i async for i in lazy(count())], await anext(lazy(count()))

    with contextlib.closing(main()) as coroutine:  # where asyncio.run cannot run, it is awaited by nobody
        assert asyncio.run(coroutine) == ("async entered", 42, [0, 1, 2], 0)


def test_iterators_are_the_real_ones() -> None:
    numbers = lazy(iter([1, 2]))
    assert (next(numbers), next(numbers), next(numbers, "end")) == (1, 2, "end")
    with pytest.raises(TypeError):
        iter(lazy(5))
    with pytest.raises(TypeError):
        len(lazy(5))
    with pytest.raises(TypeError):
        lazy(5)()
    with pytest.raises(TypeError):
        hash(lazy([]))


@pytest.mark.parametrize("protocol", range(pickle.HIGHEST_PROTOCOL + 1))
@pytest.mark.parametrize(
    "value",
    [LIST, function, Base, Color.RED, 5, "text", {"k": (1, 2)}],
    ids=lambda value: getattr(value, "__name__", repr(value)),  # without addresses: each worker collects the same
)
def test_pickle_is_the_real_objects(protocol: int, value: Any) -> None:
    for dumps in (pickle.dumps, pickle._dumps):  # type: ignore[attr-defined]
        data = dumps({"it": lazy(value)}, protocol)
        assert b"atomicio" not in data
        assert pickle.loads(data) == {"it": value}
        assert type(pickle.loads(data)["it"]) is type(value)


def test_copies_are_of_the_real_object() -> None:
    inner = [[1]]
    for copied in (copy.copy(lazy(inner)), copy.deepcopy(lazy(inner)), copy.deepcopy({"k": lazy(inner)})["k"]):
        assert type(copied) is list
        assert copied == inner
        assert copied is not inner
    assert copy.copy(lazy(inner))[0] is inner[0]
    assert copy.deepcopy(lazy(inner))[0] is not inner[0]


@pytest.mark.parametrize("error", [ImportError("gone"), RuntimeError("no"), AttributeError("inside"), KeyError("k")])
@pytest.mark.parametrize(
    "use",
    ["p()", "p.x", "hasattr(p, 'x')", "getattr(p, 'x', 0)", "isinstance(3, p)", "isinstance(p, int)", "p == 1",
     "bool(p)", "str(p)", "repr(p)", "p + 1", "1 + p", "hash(p)",
     "iter(p)", "len(p)", "copy.copy(p)", "pickle.dumps(p)", "p in [1]", "1 in p"],
)  # fmt: skip
def test_error_of_the_import_is_never_swallowed(error: Exception, use: str, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(name: str) -> Any:
        raise error

    module: Any = types.ModuleType("lazy_test_failing")
    module.__getattr__ = fail
    monkeypatch.setitem(sys.modules, "lazy_test_failing", module)
    with pytest.raises(Exception) as caught:
        eval(use, {**globals(), "p": LazyName("lazy_test_failing", "name", lambda: None)})
    # What hasattr() and the like would take for their own answer arrives as the ImportError it is.
    expected = ImportError if isinstance(error, (AttributeError, KeyError)) else type(error)
    assert type(caught.value) is expected
    assert caught.value is error or caught.value.__cause__ is error


def test_name_that_the_module_does_not_have() -> None:
    with pytest.raises(ImportError, match="'name'") as caught:
        _ = LazyName("lazy_test_stars", "name", lambda: None).anything
    assert caught.value.name == "name"


def test_import_is_retried_until_it_succeeds(monkeypatch: pytest.MonkeyPatch) -> None:
    results = [ImportError("first"), ImportError("second"), 7]

    def get(name: str) -> Any:
        if name != "name":
            raise AttributeError(name)
        result = results.pop(0)
        if isinstance(result, Exception):
            raise result
        return result

    module: Any = types.ModuleType("lazy_test_flaky")
    module.__getattr__ = get
    monkeypatch.setitem(sys.modules, "lazy_test_flaky", module)
    proxy: Any = LazyName("lazy_test_flaky", "name", lambda: None)
    for message in ("first", "second"):
        with pytest.raises(ImportError, match=message):
            proxy + 1
    assert proxy + 1 == 8


def test_what_a_proxy_cannot_do_is_as_documented() -> None:
    assert callable(lazy(5))
    assert lazy(Base) is not Base
    assert type(lazy(5)) is LazyName
    with pytest.raises(TypeError):
        "".join([lazy("text")])
    with pytest.raises(TypeError):
        try:
            raise KeyError
        except lazy(KeyError):
            pass
    name = lazy(int)
    with pytest.raises(TypeError):
        match 5:
            case name():
                pass


def test_every_special_method_of_the_builtin_types_is_forwarded() -> None:
    """What the interpreter looks up on the type never reaches __getattribute__: it has to be there."""
    types_: list[Any] = [int, float, complex, str, list, dict, set, frozenset, type, type(iter([])), io.BytesIO]
    names = {name for t in types_ for name in dir(t) if name.startswith("__") and name.endswith("__")}
    # Looked up on the instance, or not by the interpreter's syntax but by functions that use the ones above.
    elsewhere = {
        "__abstractmethods__", "__annotations__", "__base__",
        "__bases__", "__basicsize__", "__class_getitem__", "__del__",
        "__dictoffset__", "__flags__", "__firstlineno__",
        "__getnewargs__", "__getstate__", "__init_subclass__", "__itemsize__",
        "__mro__", "__name__", "__prepare__", "__qualname__",
        "__reduce__", "__setstate__", "__sizeof__", "__static_attributes__",
        "__subclasses__", "__subclasshook__", "__text_signature__",
        "__type_params__", "__weakrefoffset__", "__weakref__",
        "__dict__", "__new__", "__getformat__", "__or__",
        "__ror__", "__annotate__", "__annotations_cache__", "__annotate_func__",
    }  # fmt: skip
    missing = {name for name in names if name not in dir(type("X", (), {})) and name not in vars(LazyName)}
    assert missing - elsewhere == set()
