"""Whatever writes to a file object, or to a path, writes through atomicio unchanged."""

from __future__ import annotations

import bz2
import codecs
import configparser
import contextlib
import csv
import gzip
import io
import json
import logging
import lzma
import marshal
import os
import pickle
import plistlib
import pprint
import shutil
import subprocess
import sys
import tarfile
import wave
import zipfile
from collections.abc import Callable
from typing import TYPE_CHECKING, Any
from xml.etree import ElementTree as ET

import pytest

import atomicio
from oracle import read, write

if TYPE_CHECKING:
    from pathlib import Path

ROWS = [["a", "b\u00fc", 'with "quotes"'], ["1", "2,3", "line\nbreak"]] * 50
TREE = {"name": "gr\u00fcn", "list": list(range(100)), "nested": {"none": None, "true": True}}
BYTES = bytes(range(256)) * 50

#: What a consumer does with a file object: (mode, keywords of open, what to do).
Consumer = tuple[str, dict[str, Any], Callable[[Any], object]]


def write_zip(file: Any) -> None:
    with zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED) as archive:
        for number in range(5):
            archive.writestr(zipfile.ZipInfo(f"member-{number}"), BYTES)


def write_tar(file: Any) -> None:
    with tarfile.open(fileobj=file, mode="w") as archive:
        for number in range(5):
            member = tarfile.TarInfo(f"member-{number}")
            member.size = len(BYTES)
            archive.addfile(member, io.BytesIO(BYTES))


def write_tar_gz(file: Any) -> None:
    with (
        gzip.GzipFile("name", "wb", fileobj=file, mtime=0) as packed,
        tarfile.open(fileobj=packed, mode="w|") as archive,
    ):
        archive.addfile(tarfile.TarInfo("member"))


def write_gzip(file: Any) -> None:
    with gzip.GzipFile("name", "wb", fileobj=file, mtime=0) as packed:
        packed.write(BYTES)


def write_gzip_text(file: Any) -> None:
    with gzip.GzipFile("name", "wb", fileobj=file, mtime=0) as packed, io.TextIOWrapper(packed, "utf-8") as text:
        json.dump(TREE, text)


def write_by(opener: Any) -> Callable[[Any], None]:
    def action(file: Any) -> None:
        with opener(file, "wb") as packed:
            packed.write(BYTES)

    return action


def write_wave(file: Any) -> None:
    with wave.open(file, "wb") as sound:
        sound.setnchannels(1)
        sound.setsampwidth(2)
        sound.setframerate(8000)
        sound.writeframes(BYTES)


def write_config(file: Any) -> None:
    parser = configparser.ConfigParser()
    parser["section"] = {"key": "value", "k\u00fc": "gr\u00fcn"}
    parser.write(file)


def write_log(file: Any) -> None:
    handler = logging.StreamHandler(file)
    handler.setFormatter(logging.Formatter("%(message)s"))
    handler.emit(logging.LogRecord("name", logging.INFO, "path", 1, "message %s", ("gr\u00fcn",), None))
    handler.close()


def write_tree(file: Any) -> None:
    root = ET.Element("root", {"name": "gr\u00fcn"})
    ET.SubElement(root, "child").text = "<&>"
    ET.ElementTree(root).write(file, encoding="unicode" if isinstance(file, io.TextIOBase) else "utf-8")


def write_print(file: Any) -> None:
    with contextlib.redirect_stdout(file):
        print("one", "two", sep="\t")
    print("three", file=file, flush=True)
    pprint.pprint(TREE, stream=file)


def write_codec(file: Any) -> None:
    codecs.getwriter("utf-16-le")(file).write("gr\u00fcn")


def write_wrapped_text(file: Any) -> None:
    text = io.TextIOWrapper(file, "latin-1")
    text.write("gr\u00fcn")
    text.detach()


def write_wrapped_bytes(file: Any) -> None:
    buffer = io.BufferedWriter(file)
    buffer.write(BYTES)
    buffer.detach()


def write_process(file: Any) -> None:
    file.write(b"before ")
    file.flush()
    subprocess.run([sys.executable, "-c", "import sys; sys.stdout.write('from a process')"], stdout=file, check=True)



def write_wrapped(file: Any) -> None:
    with io.TextIOWrapper(file, "latin-1") as text:
        text.write("gr\u00fcn")


def write_buffered(file: Any) -> None:
    with io.BufferedWriter(file) as buffer:
        buffer.write(BYTES)


CONSUMERS: dict[str, Consumer] = {
    "csv": ("w", {"newline": ""}, lambda file: csv.writer(file).writerows(ROWS)),
    "csv.DictWriter": ("x", {"newline": ""}, lambda file: csv.DictWriter(file, ["a"]).writerows([{"a": "1"}])),
    "json": ("w", {}, lambda file: json.dump(TREE, file, ensure_ascii=False, indent=1)),
    "pickle": ("wb", {}, lambda file: pickle.dump(TREE, file)),
    "pickle-5-unbuffered": ("wb", {"buffering": 0}, lambda file: pickle.dump([BYTES * 100], file, protocol=5)),
    "pickle-update": ("w+b", {}, lambda file: (pickle.dump(TREE, file), file.seek(0), pickle.load(file))),
    "marshal": ("wb", {}, lambda file: marshal.dump(TREE, file)),
    "plistlib": ("wb", {}, lambda file: plistlib.dump({"name": "gr\u00fcn"}, file)),
    "zipfile": ("wb", {}, write_zip),
    "zipfile-update": ("w+b", {}, write_zip),
    "zipfile-unbuffered": ("wb", {"buffering": 0}, write_zip),
    "tarfile": ("wb", {}, write_tar),
    "tarfile-stream": ("wb", {}, write_tar_gz),
    "gzip": ("wb", {}, write_gzip),
    "gzip-text": ("wb", {}, write_gzip_text),
    "bz2": ("wb", {}, write_by(bz2.open)),
    "lzma": ("wb", {}, write_by(lzma.open)),
    "wave": ("wb", {}, write_wave),
    "configparser": ("w", {}, write_config),
    "logging": ("a", {}, write_log),
    "ElementTree-text": ("w", {}, write_tree),
    "ElementTree-binary": ("wb", {}, write_tree),
    "print": ("w", {}, write_print),
    "codecs": ("wb", {}, write_codec),
    "shutil.copyfileobj": ("wb", {}, lambda file: shutil.copyfileobj(io.BytesIO(BYTES * 100), file)),
    "TextIOWrapper": ("wb", {}, write_wrapped),
    "BufferedWriter": ("wb", {"buffering": 0}, write_buffered),
    "memoryview": ("wb", {}, lambda file: file.write(memoryview(BYTES)[::2].tobytes())),
    "subprocess": ("wb", {}, write_process),
}


@pytest.mark.parametrize("level", ["none", "durable"])
@pytest.mark.parametrize("old", [None, b"something older, and longer than what is written now" * 1000])
@pytest.mark.parametrize("name", CONSUMERS)
def test_a_consumer_of_the_standard_library(tmp_path: Path, name: str, old: bytes | None, level: str) -> None:
    mode, keywords, use = CONSUMERS[name]
    plain, atomic = tmp_path / "plain", tmp_path / "atomic"
    if old is not None and not mode.startswith("x"):
        write(plain, old)
        write(atomic, old)
    with open(plain, mode, **({} if "b" in mode else {"encoding": "utf-8"}), **keywords) as file:
        use(file)
    with atomicio.atomic_write(atomic, mode, durability=level, **keywords) as file:
        use(file)
        assert (read(atomic) if atomic.exists() else None) == (None if mode.startswith("x") else old)
    assert read(atomic) == read(plain)
    assert sorted(os.listdir(tmp_path)) == ["atomic", "plain"]


def check_reading(path: Path, name: str) -> None:
    """What was written can be read back by the same library."""
    if name == "zipfile":
        with zipfile.ZipFile(path) as archive:
            assert archive.testzip() is None
            assert archive.read("member-4") == BYTES
    elif name == "tarfile":
        with tarfile.open(path) as archive:
            extracted = archive.extractfile("member-4")
            assert extracted is not None and extracted.read() == BYTES


@pytest.mark.parametrize("name", ["zipfile", "tarfile"])
def test_an_archive_can_be_read_back(tmp_path: Path, name: str) -> None:
    mode, _, use = CONSUMERS[name]
    with atomicio.atomic_write(tmp_path / "archive", mode) as file:
        use(file)
    check_reading(tmp_path / "archive", name)


def test_an_archive_is_appended_to(tmp_path: Path) -> None:
    """zipfile and tarfile find the end of what is there, read it, and write on: mode r+b."""
    with atomicio.atomic_write(tmp_path / "archive.zip", "wb") as file:
        write_zip(file)
    with atomicio.atomic_write(tmp_path / "archive.zip", "r+b") as file, zipfile.ZipFile(file, "a") as archive:
        archive.writestr("added", b"more")
    with zipfile.ZipFile(tmp_path / "archive.zip") as archive:
        assert archive.testzip() is None
        assert archive.read("added") == b"more"
        assert len(archive.namelist()) == 6


def test_shelve_free_formats_that_open_by_name(tmp_path: Path) -> None:
    """What takes only a path gets one."""
    with atomicio.atomic_path(str(tmp_path / "archive.tar.xz")) as staging, tarfile.open(staging, "w:xz") as archive:
        archive.addfile(tarfile.TarInfo("member"))
    with tarfile.open(tmp_path / "archive.tar.xz") as archive:
        assert archive.getnames() == ["member"]
    with atomicio.atomic_path(str(tmp_path / "out.gz")) as staging, gzip.open(staging, "wb") as packed:
        packed.write(BYTES)
    assert gzip.decompress(read(tmp_path / "out.gz")) == BYTES
    with atomicio.atomic_path(str(tmp_path / "made.zip")) as staging:
        (tmp_path / "source").mkdir()
        write(tmp_path / "source" / "member", BYTES)
        shutil.make_archive(staging.removesuffix(".zip"), "zip", tmp_path / "source")
    with zipfile.ZipFile(tmp_path / "made.zip") as archive:
        assert archive.read("member") == BYTES
    assert sorted(os.listdir(tmp_path)) == ["archive.tar.xz", "made.zip", "out.gz", "source"]


def test_sqlite_writes_a_whole_database_by_name(tmp_path: Path) -> None:
    sqlite3 = pytest.importorskip("sqlite3")
    target = tmp_path / "data.db"
    write(target, b"old")
    with atomicio.atomic_path(str(target)) as staging:
        with contextlib.closing(sqlite3.connect(staging)) as connection:
            connection.execute("create table t (x)")
            connection.executemany("insert into t values (?)", [(number,) for number in range(1000)])
            connection.commit()
        assert read(target) == b"old"
    with contextlib.closing(sqlite3.connect(target)) as connection:
        assert connection.execute("select count(*) from t").fetchone() == (1000,)
    assert os.listdir(tmp_path) == ["data.db"]


def test_a_subprocess_writes_by_name(tmp_path: Path) -> None:
    target = tmp_path / "out.txt"
    with atomicio.atomic_path(str(target)) as staging:
        subprocess.run([sys.executable, "-c", "import sys; open(sys.argv[1], 'w').write('new')", staging], check=True)
    assert read(target) == b"new"
    with pytest.raises(subprocess.CalledProcessError), atomicio.atomic_path(str(target)) as staging:
        code = "import sys; open(sys.argv[1], 'w').write('half'); sys.exit(3)"
        subprocess.run([sys.executable, "-c", code, staging], check=True)
    assert read(target) == b"new"
    assert os.listdir(tmp_path) == ["out.txt"]


# ---------------------------------------------------------------------------------------------------------------------
# numpy, pandas, PIL, h5py
# ---------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("buffering", [-1, 0])
@pytest.mark.parametrize("mode", ["wb", "w+b", "xb"])
def test_numpy(tmp_path: Path, mode: str, buffering: int) -> None:
    numpy = pytest.importorskip("numpy", reason="numpy has no wheel for this Python")
    array = numpy.arange(100_000.0).reshape(100, 1000)
    for number, save in enumerate(
        (
            lambda file: numpy.save(file, array),
            lambda file: numpy.save(file, numpy.asfortranarray(array)),
            lambda file: numpy.save(file, array[:, ::2]),
            lambda file: numpy.savez(file, a=array, b=array * 2),
            lambda file: numpy.savez_compressed(file, a=array),
            lambda file: numpy.savetxt(file, array[:5]),
            lambda file: array.tofile(file),
        )
    ):
        plain, atomic = tmp_path / f"plain-{number}", tmp_path / f"atomic-{number}"
        with open(plain, mode, buffering) as file:
            save(file)
        with atomicio.atomic_write(atomic, mode, buffering, durability="none") as file:
            save(file)
        if number in (3, 4):  # a zip archive holds the time of day
            with numpy.load(plain) as expected, numpy.load(atomic) as got:
                assert sorted(expected) == sorted(got)
                assert all((expected[name] == got[name]).all() for name in expected)
        else:
            assert read(atomic) == read(plain)


def test_numpy_tofile_after_other_writes(tmp_path: Path) -> None:
    """tofile writes by a copy of the descriptor, past the buffer: the order of what was written must hold."""
    numpy = pytest.importorskip("numpy", reason="numpy has no wheel for this Python")
    for opener, name in ((open, "plain"), (atomicio.atomic_write, "atomic")):
        with opener(tmp_path / name, "wb") as file:
            file.write(b"header")
            numpy.arange(1000).tofile(file)
            file.write(b"trailer")
    assert read(tmp_path / "atomic") == read(tmp_path / "plain")


def test_numpy_memmap_by_name(tmp_path: Path) -> None:
    numpy = pytest.importorskip("numpy", reason="numpy has no wheel for this Python")
    with atomicio.atomic_path(str(tmp_path / "out.npy")) as staging:
        mapped = numpy.lib.format.open_memmap(staging, "w+", numpy.float64, (100,))
        mapped[:] = numpy.arange(100)
        mapped.flush()
        del mapped
    assert (numpy.load(tmp_path / "out.npy") == numpy.arange(100)).all()


def test_pandas_csv_and_pickle(tmp_path: Path) -> None:
    pandas = pytest.importorskip("pandas", reason="pandas has no wheel for this Python")
    frame = pandas.DataFrame({"a": range(1000), "\u00fc": ["x,y", 'z"'] * 500})
    for opener, name in ((open, "plain"), (atomicio.atomic_write, "atomic")):
        text = {"encoding": "utf-8"} if opener is open else {}
        with opener(tmp_path / f"{name}.csv", "w", newline="", **text) as file:
            frame.to_csv(file)
        with opener(tmp_path / f"{name}-binary.csv", "wb") as file:
            frame.to_csv(file, encoding="latin-1")
        with opener(tmp_path / f"{name}.pickle", "wb") as file:
            frame.to_pickle(file)
        with opener(tmp_path / f"{name}.json", "w", **text) as file:
            frame.to_json(file)
    for suffix in (".csv", "-binary.csv", ".pickle", ".json"):
        assert read(tmp_path / f"atomic{suffix}") == read(tmp_path / f"plain{suffix}")


def test_pandas_parquet(tmp_path: Path) -> None:
    pandas = pytest.importorskip("pandas", reason="pandas has no wheel for this Python")
    pytest.importorskip("pyarrow", reason="pyarrow has no wheel for this Python")
    frame = pandas.DataFrame({"a": range(1000), "b": ["x", "y"] * 500})
    with atomicio.atomic_write(tmp_path / "by-file.parquet", "wb") as file:
        frame.to_parquet(file)
    with atomicio.atomic_path(tmp_path / "by-path.parquet") as staging:
        frame.to_parquet(staging)
    for name in ("by-file.parquet", "by-path.parquet"):
        assert pandas.read_parquet(tmp_path / name).equals(frame)
    assert len(os.listdir(tmp_path)) == 2


@pytest.mark.parametrize("kind", ["png", "jpeg", "gif", "bmp", "tiff", "webp"])
def test_pil(tmp_path: Path, kind: str) -> None:
    image_module = pytest.importorskip("PIL.Image", reason="pillow has no wheel for this Python")
    image = image_module.new("RGB", (64, 48), (10, 200, 30))
    with open(tmp_path / f"plain.{kind}", "wb") as file:
        image.save(file, kind)
    with atomicio.atomic_write(tmp_path / f"atomic.{kind}", "wb") as file:
        image.save(file)  # PIL takes the format from the name of the file object
    with atomicio.atomic_write(tmp_path / f"update.{kind}", "w+b", buffering=0) as file:
        image.save(file, kind)
    with atomicio.atomic_path(str(tmp_path / f"path.{kind}")) as staging:
        image.save(staging)  # and from the suffix of a path
    expected = read(tmp_path / f"plain.{kind}")
    assert [name for name in ("atomic", "update", "path") if read(tmp_path / f"{name}.{kind}") != expected] == []


def test_h5py(tmp_path: Path) -> None:
    h5py = pytest.importorskip("h5py", reason="h5py has no wheel for this Python")
    numpy = pytest.importorskip("numpy", reason="numpy has no wheel for this Python")
    target = tmp_path / "data.h5"
    with atomicio.atomic_path(str(target)) as staging:
        with h5py.File(staging, "w") as file:
            file["x"] = numpy.arange(10_000)
        assert not target.exists()
    with h5py.File(target) as file:
        assert (file["x"][:] == numpy.arange(10_000)).all()
    with pytest.raises(KeyError), atomicio.atomic_path(str(target)) as staging, h5py.File(staging, "w") as file:
        file["y"] = 1
        raise KeyError
    with h5py.File(target) as file:
        assert list(file) == ["x"]
    with atomicio.atomic_write(tmp_path / "by-file.h5", "w+b") as stream, h5py.File(stream, "w") as file:
        file["x"] = numpy.arange(10)
    with h5py.File(tmp_path / "by-file.h5") as file:
        assert len(file["x"]) == 10
    assert sorted(os.listdir(tmp_path)) == ["by-file.h5", "data.h5"]
