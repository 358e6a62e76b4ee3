"""The cache never lies: whatever is edited between two processes, the names served are those of a real star import."""

from __future__ import annotations

import json
import os
import random
import shutil
import subprocess
import sys
import zipfile
from importlib.machinery import EXTENSION_SUFFIXES
from typing import TYPE_CHECKING

import pytest

from star_helpers import environment, finish, make, recorded, settle, start

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

EDITS = int(os.environ.get("ATOMICIO_EDITS", "2000"))

BASE = {
    "a.py": "from b import *\nx = 1\n",
    "b.py": "from c_optional_holder import *\nfrom pkg import *\ny = 2\n",
    "c_optional_holder.py": "try:\n    import optional\n    found = optional.value\nexcept ImportError:\n    pass\n",
    "pkg/__init__.py": "from .sub import *\n__all__ = ['s', 'extra']\nextra = 1\n",
    "pkg/sub.py": "s = 1\n",
    "listed.py": "__all__ = ['p', 'q']\np = 1; q = 2\n",
    "vary.py": "import b\nglobals().update({k: v for k, v in vars(b).items() if k[0] != '_'})\n",
    "space/part.py": "from a import *\nz = 1\n",
}
TARGETS = ["a", "listed", "vary", "pkg", "pkg.sub", "space.part", "space"]
# One process learns (or is served) and one asks the language itself; each target in the same process for both.
ASK = """
import random
def real(module):
    space = {}
    exec(f"from {module} import *", {"__name__": "user"}, space)
    return space
out = {}
cases = json.loads(sys.argv[1])
for case in cases:
    # A child for each: nothing that another case has loaded may matter.
    read, write = os.pipe()
    pid = os.fork()
    if not pid:
        try:
            sys.path[:0] = case["path"]
            if case["cache"]:
                c = StarImportCache(case["cache"])
                hit = None
                try:
                    names = sorted(c.names(case["module"]))
                    hit = case["module"] not in sys.modules
                except Exception as error:
                    names = type(error).__name__
                c.save(strict=True)
            else:
                hit = False
                try:
                    names = sorted(real(case["module"]))
                except Exception as error:
                    names = type(error).__name__
            os.write(write, json.dumps([names, hit]).encode())
        finally:
            os._exit(0)
    os.close(write)
    with open(read, "rb") as pipe:
        out[case["key"]] = json.loads(pipe.read() or b'["died", null]')
    os.waitpid(pid, 0)
answer(out)
"""


def ask(cases: list[dict[str, object]]) -> dict[str, tuple[list[str], bool]]:
    """Each case in a process of its own, forked from one that has loaded nothing but the layer."""
    from star_helpers import PRELUDE

    whole = [sys.executable, "-P", "-c", PRELUDE + "import ast, filelock\n" + ASK, json.dumps(cases)]
    done = subprocess.run(whole, env=environment(), capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    return {key: tuple(value) for key, value in json.loads(done.stdout.splitlines()[-1]).items()}


# The matrix: what is done, to which star it matters, and whether a process could see it at all.
def rewrite(name: str, text: str) -> Callable[[Path], None]:
    return lambda root: make(root, {name: text})


def backdated(name: str, text: str) -> Callable[[Path], None]:
    """As cp -p, rsync or an archive would put an older file there."""

    def edit(root: Path) -> None:
        make(root, {name: text})
        os.utime(root / name, (1_000_000_000, 1_000_000_000))

    return edit


def renamed(old: str, new: str) -> Callable[[Path], None]:
    return lambda root: (root / old).rename(root / new)  # type: ignore[return-value]


def removed(name: str) -> Callable[[Path], None]:
    return lambda root: shutil.rmtree(root / name) if (root / name).is_dir() else (root / name).unlink()


def replaced_by_rename(name: str, text: str) -> Callable[[Path], None]:
    """As an editor, git or pip does: another file under the name."""

    def edit(root: Path) -> None:
        make(root, {name + ".new": text})
        (root / (name + ".new")).replace(root / name)

    return edit


def compiled_only(name: str) -> Callable[[Path], None]:
    def edit(root: Path) -> None:
        import py_compile

        make(root, {name + ".py": "from_bytecode = 1\n"})
        py_compile.compile(str(root / f"{name}.py"), str(root / f"{name}.pyc"))
        (root / f"{name}.py").unlink()

    return edit


def zip_rewritten(root: Path) -> None:
    with zipfile.ZipFile(root / "archive.zip", "w") as archive:
        archive.writestr("zipped.py", "n1 = 1\nn2 = 2\nn3 = 3\n")


MATRIX: dict[str, tuple[str, Callable[[Path], None]]] = {
    "source of the module": ("a", rewrite("a.py", "from b import *\nx = 1\nx2 = 2\n")),
    "its __all__": ("listed", rewrite("listed.py", "__all__ = ['p']\np = 1; q = 2\n")),
    "transitive star": ("a", rewrite("b.py", "y = 2\ny2 = 3\n")),
    "transitive star through a package": ("a", rewrite("pkg/__init__.py", "__all__ = ['s']\nfrom .sub import *\n")),
    "submodule": ("pkg", rewrite("pkg/__init__.py", "from .sub import *\nfrom . import sub as sub2\n")),
    "globals().update(vars(b))": ("vary", rewrite("b.py", "y = 2\nnew = 4\n")),
    "backdated rewrite": ("a", backdated("b.py", "y = 2\nold = 4\n")),
    "replaced by rename": ("a", replaced_by_rename("b.py", "y = 2\nrenamed = 4\n")),
    "module deleted": ("listed", removed("listed.py")),
    "dependency deleted": ("a", removed("b.py")),
    "package renamed": ("pkg", renamed("pkg", "pkg_old")),
    "package removed": ("a", removed("pkg")),
    "module becomes a package": ("listed", rewrite("listed/__init__.py", "p = 1; as_package = 2\n")),
    "dependency becomes a package": ("a", rewrite("b/__init__.py", "as_package = 2\n")),
    "module becomes byte code": ("listed", compiled_only("listed")),
    "shadowed on the path": ("listed", rewrite("front/listed.py", "front = 1\n")),
    "dependency shadowed on the path": ("a", rewrite("front/b.py", "front = 1\n")),
    "shadowed by a package on the path": ("listed", rewrite("front/listed/__init__.py", "front = 1\n")),
    "optional dependency appears": ("a", rewrite("optional.py", "value = 1\n")),
    "optional dependency appears in another folder of the path": ("a", rewrite("front/optional.py", "value = 1\n")),
    "optional dependency appears where no folder was": ("a", rewrite("later/optional.py", "value = 1\n")),
    "extension module beside the module": ("listed", rewrite(f"listed{EXTENSION_SUFFIXES[0]}", "no shared object")),
    "namespace portion appears in front": ("space.part", rewrite("front/space/part.py", "front = 1\n")),
    "namespace becomes a package": ("space.part", rewrite("front/space/__init__.py", "")),
    "submodule of a package becomes a package": ("pkg.sub", rewrite("pkg/sub/__init__.py", "deeper = 1\n")),
    "zip rewritten": ("zipped", zip_rewritten),
    "zip deleted": ("zipped", removed("archive.zip")),
    "empty module": ("a", rewrite("a.py", "")),
    "module that raises now": ("a", rewrite("b.py", "1/0\n")),
}


def tree(root: Path) -> list[str]:
    make(root, BASE)
    (root / "front").mkdir()
    with zipfile.ZipFile(root / "archive.zip", "w") as archive:
        archive.writestr("zipped.py", "n1 = 1\nn2 = 2\n")
    return [str(root / "front"), str(root), str(root / "archive.zip"), str(root / "later")]


def test_every_row_of_the_matrix(tmp_path: Path) -> None:
    (tmp_path / "caches").mkdir()
    rows = {}
    for number, (row, (module, edit)) in enumerate(MATRIX.items()):
        root = tmp_path / f"row{number}"
        case = {"module": module, "path": tree(root), "cache": str(tmp_path / "caches" / f"{number}.json")}
        rows[row] = (root, edit, {**case, "key": row})
    settle()
    cases = [case for _, _, case in rows.values()]
    before = ask(cases)
    assert ask(cases) == {row: (names, True) for row, (names, _) in before.items()}, "not everything was a hit"
    for root, edit, _ in rows.values():
        edit(root)
    served = {row: names for row, (names, _) in ask(cases).items()}
    real = {row: names for row, (names, _) in ask([{**case, "cache": None} for case in cases]).items()}
    assert served == real
    unchanged = {row for row in rows if real[row] == before[row][0]}
    assert unchanged == set(), "an edit that changes nothing shows nothing"
    print(f"{len(rows)} rows, all as a real import")


def test_rows_that_are_documented_as_impossible(tmp_path: Path) -> None:
    """Same size and mtime: what CPython's own byte code cache does not see either. The environment: check() sees it."""
    (tmp_path / "caches").mkdir()
    root = tmp_path / "row"
    path = tree(root)
    os.utime(root / "listed.py", ns=(10**18, 10**18))
    settle()
    case = {"module": "listed", "path": path, "cache": str(tmp_path / "caches" / "c.json"), "key": "k"}
    assert ask([case])["k"] == (["p", "q"], False)
    make(root, {"listed.py": "__all__ = ['p', 'r']\np = 1; r = 2\n"})
    os.utime(root / "listed.py", ns=(10**18, 10**18))
    assert ask([case])["k"] == (["p", "q"], True)


def test_edit_during_the_import_is_not_recorded(tmp_path: Path) -> None:
    make(tmp_path, {"slow.py": "import dep, time\nopen(dep.__file__, 'w').write('late = 1\\n')\ntime.sleep(0.1)\n"})
    make(tmp_path, {"dep.py": "early = 1\n", "top.py": "import slow\nfrom dep import *\n"})
    settle()
    cache = tmp_path / "caches" / "c.json"
    finish(start(f"c = StarImportCache({str(cache)!r}); c.names('top'); c.save(strict=True)", tmp_path))
    assert not cache.exists() or "top" not in recorded(cache)


# The generator: every edit is one of those of the matrix with random content, in a random order, to random packages.
class Package:
    """A tree of modules that star-import each other, and the edits that people make to one."""

    def __init__(self, root: Path, seed: int) -> None:
        self.root, self.random = root, random.Random(seed)
        root.mkdir()
        self.path = tree(root)
        self.fresh = 0

    def name(self) -> str:
        self.fresh += 1
        return f"n{self.random.randrange(30)}" if self.random.random() < 0.5 else f"fresh{self.fresh}"

    def body(self) -> str:
        lines = [f"{self.name()} = {self.random.randrange(9)}" for _ in range(self.random.randrange(4))]
        lines += self.random.choice([[], ["from b import *"], ["from pkg import *"], ["import optional"], ["import c"]])
        if self.random.random() < 0.3:
            names = [line.split()[0] for line in lines if "=" in line]
            lines.append(f"__all__ = {names + ([self.name()] if self.random.random() < 0.1 else [])!r}")
        if self.random.random() < 0.05:
            lines.append("raise RuntimeError('broken')")
        return "\n".join(lines) + "\n"

    def edit(self) -> str:
        where = self.random.choice([*BASE, "optional.py", "front/listed.py", "front/b.py", "front/pkg/__init__.py"])
        target = self.root / where
        kinds = ["write", "rename", "backdate", "append", "remove", "package", "restore", "zip", "touch"]
        kind = self.random.choice(kinds)
        if kind == "remove" and target.exists():
            target.unlink()
        elif kind == "package" and "/" not in where:
            folder = self.root / where.removesuffix(".py")
            if folder.exists():
                shutil.rmtree(folder)
            else:
                make(self.root, {f"{folder.name}/__init__.py": self.body()})
        elif kind == "restore":
            for part in (self.root / "front").iterdir():
                shutil.rmtree(part) if part.is_dir() else part.unlink()
            make(self.root, BASE)
        elif kind == "zip":
            with zipfile.ZipFile(self.root / "archive.zip", "w") as archive:
                archive.writestr("zipped.py", "zip = 1\n" + self.body())
        elif kind == "rename":
            make(self.root, {where + ".new": self.body()})
            (self.root / (where + ".new")).replace(target)
        elif kind == "append" and target.exists():
            with target.open("a") as file:
                file.write(f"{self.name()} = 0\n")
        elif kind == "touch" and target.exists():
            os.utime(target)
        else:
            make(self.root, {where: self.body()})
            if kind == "backdate":
                # Any date but one this file has had: that is the row documented as impossible.
                when = 10**18 + self.random.randrange(10**15)
                os.utime(target, ns=(when, when))
        return f"{kind} {where}"


def test_random_edits_never_make_it_lie(tmp_path: Path) -> None:
    many = 250  # packages side by side, because each round has to wait until what it learns is old enough
    (caches := tmp_path / "caches").mkdir()
    packages = [Package(tmp_path / f"p{number}", number) for number in range(many)]
    edits = hits = changes = 0
    last: dict[str, object] = {}
    while edits < EDITS:
        settle()
        cases = [
            {"key": f"{number} {target}", "module": target, "path": package.path, "cache": f"{caches}/{number}.json"}
            for number, package in enumerate(packages)
            for target in [package.random.choice([*TARGETS, "zipped"])]
        ]
        ask(cases)  # learn
        done = []
        for number, package in enumerate(packages):
            if number % 10:  # the others are left alone, and hit
                done.append(package.edit())
                edits += 1
        served, real = ask(cases), ask([{**case, "cache": None} for case in cases])
        lies = {key: (names, real[key][0]) for key, (names, _) in served.items() if names != real[key][0]}
        assert lies == {}, done
        hits += sum(hit is True for _, hit in served.values())
        changes += sum(last.get(key) not in (None, names) for key, (names, _) in real.items())
        last.update({key: names for key, (names, _) in real.items()})
    assert hits > edits / 20, "it tells the truth only because it never answers from the cache"
    assert changes > edits / 20, "the edits change nothing"
    print(f"{edits} edits, {hits} hits, {changes} changed sets of names, no lie")


@pytest.mark.skipif(not shutil.which("git"), reason="needs git to check out another commit")
def test_git_checkout(tmp_path: Path) -> None:
    root = tmp_path / "repo"
    make(root, {"listed.py": "one = 1\n"})
    git = ["git", "-C", str(root), "-c", "user.name=t", "-c", "user.email=t@example.org"]
    for command in (["init", "-q"], ["add", "."], ["commit", "-qm", "1"]):
        subprocess.run([*git, *command], check=True)
    make(root, {"listed.py": "two = 2\n"})
    subprocess.run([*git, "commit", "-qam", "2"], check=True)
    case = {"module": "listed", "path": [str(root)], "cache": str(tmp_path / "c" / "c.json"), "key": "k"}
    for commit, names in (("HEAD", ["two"]), ("HEAD~1", ["one"]), ("HEAD@{1}", ["two"])):
        subprocess.run([*git, "checkout", "-q", commit], check=True)
        assert ask([case])["k"] == (names, False)
        settle()
        ask([case])
        assert ask([case])["k"] == (names, True)


def test_pip_upgrade(tmp_path: Path) -> None:
    """pip install --upgrade, as a wheel: unpacked by zipfile, with whatever dates the wheel has."""
    site = tmp_path / "site"
    case = {"module": "wheely", "path": [str(site)], "cache": str(tmp_path / "c" / "c.json"), "key": "k"}
    for version, names in (("1", ["one"]), ("2", ["two"]), ("1", ["one"])):
        wheel = tmp_path / f"wheely-{version}-py3-none-any.whl"
        info = f"wheely-{version}.dist-info"
        with zipfile.ZipFile(wheel, "w") as archive:
            archive.writestr("wheely.py", f"{names[0]} = 1\n")
            archive.writestr(f"{info}/METADATA", f"Metadata-Version: 2.1\nName: wheely\nVersion: {version}\n")
            archive.writestr(f"{info}/WHEEL", "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n")
            archive.writestr(f"{info}/RECORD", f"wheely.py,,\n{info}/METADATA,,\n{info}/WHEEL,,\n{info}/RECORD,,\n")
        pip = [sys.executable, "-m", "pip", "install", "-q", "--no-deps", "--no-index", "--no-compile", "--upgrade"]
        done = subprocess.run([*pip, "--target", str(site), str(wheel)], capture_output=True, text=True)
        if "No module named pip" in done.stderr:
            pytest.skip("needs pip in the environment under test")
        assert done.returncode == 0, done.stderr
        assert ask([case])["k"] == (names, False)
        settle()
        ask([case])
        assert ask([case])["k"] == (names, True)
