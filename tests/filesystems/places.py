"""Directories on the file systems that people have, made for a test run and gone with it."""

from __future__ import annotations

import contextlib
import functools
import os
import select
import shutil
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace

import mounts

HERE = os.path.dirname(os.path.abspath(__file__))
_PATIENCE = 400.0  # seconds for all tests on one FUSE file system; some programs hang
SFTP_SERVER = "/usr/lib/openssh/sftp-server"


class Missing(Exception):
    """The machine lacks something: said in one line."""


@dataclass(frozen=True)
class Place:
    """One kind of place: how to make it and what is different there.

    *make* is a context manager from an empty folder to the folder to write in; *differs* says for a promise what
    holds in its stead.
    """

    name: str
    make: Callable[[str], contextlib.AbstractContextManager[str]]
    differs: dict[str, str] = field(default_factory=dict)
    #: for each functional test, by a regular expression, that cannot hold there: what is lacking
    lacks: dict[str, str] = field(default_factory=dict)
    #: how files are staged there, and how one is created that must not exist: names in tests/faults
    staging: tuple[str, str] = ("unnamed", "unnamed")


def _need(program: str) -> str:
    found = shutil.which(program)
    if found is None and not os.path.exists(program):
        raise Missing(f"{os.path.basename(program)} is not installed")
    return found or program


def _need_kernel(kind: str) -> None:
    with open("/proc/filesystems") as table:
        if kind not in table.read().split():
            raise Missing(f"the kernel has no {kind}")


def _folder(parent: str, name: str) -> str:
    path = os.path.join(parent, name)
    os.mkdir(path)
    return path


# --- block devices ----------------------------------------------------------------------------------------------------


def block(name: str, megabytes: int = 0) -> Callable[[str], contextlib.AbstractContextManager[str]]:
    @contextlib.contextmanager
    def make(folder: str) -> Iterator[str]:
        system = mounts.BLOCK_FILE_SYSTEMS[name]
        system = replace(system, megabytes=max(megabytes, system.megabytes))
        if reason := system.missing():
            raise Missing(reason)
        image = os.path.join(folder, "image")
        system.format(image)
        where = _folder(folder, "mounted")
        with mounts.loop_device(image) as device, mounts.mounted(device, where, system.kind, system.options):
            yield where

    return make


@contextlib.contextmanager
def few_inodes(folder: str) -> Iterator[str]:
    """Make an ext4 whose inode table is full but for one: a name more is possible, two are not."""
    _need_kernel("ext4")
    _need("mkfs.ext4")
    image = os.path.join(folder, "image")
    with open(image, "wb") as file:
        file.truncate(8 << 20)
    subprocess.run(["mkfs.ext4", "-q", "-N", "32", image], check=True)
    where = _folder(folder, "mounted")
    with mounts.loop_device(image) as device, mounts.mounted(device, where, "ext4"):
        yield where


@contextlib.contextmanager
def btrfs_quota(folder: str) -> Iterator[str]:
    """Make a btrfs subvolume that may hold 2 MiB."""
    with block("btrfs")(folder) as where:
        volume = os.path.join(where, "volume")
        for command in (
            ["btrfs", "quota", "enable", where],
            ["btrfs", "subvolume", "create", volume],
            ["btrfs", "qgroup", "limit", "2M", volume],
        ):
            subprocess.run([_need("btrfs"), *command[1:]], check=True, capture_output=True)
        yield volume


@contextlib.contextmanager
def tmpfs(folder: str, options: str = "size=1g") -> Iterator[str]:
    where = _folder(folder, "mounted")
    with mounts.mounted("none", where, "tmpfs", options):
        yield where


# --- overlayfs, as in containers --------------------------------------------------------------------------------------


@contextlib.contextmanager
def overlay(folder: str) -> Iterator[str]:
    """Make an overlay; what the tests set up can be put into its lower layer by :func:`lower_layer`."""
    _need_kernel("overlay")
    with tmpfs(folder) as ram:
        lower, upper, work, where = (_folder(ram, name) for name in ("lower", "upper", "work", "merged"))
        # a folder that exists below, with a file that exists below: the first write copies both up
        _folder(lower, "below")
        with mounts.mounted("none", where, "overlay", f"lowerdir={lower},upperdir={upper},workdir={work}"):
            yield where


# --- FUSE -------------------------------------------------------------------------------------------------------------


@contextlib.contextmanager
def _daemon(command: list[str], where: str, **options: object) -> Iterator[str]:
    """Run a FUSE program in the foreground until its file system is there; it dies with us, and the mount with it."""
    before = os.stat(where).st_dev
    process = subprocess.Popen(  # type: ignore[call-overload]
        command,
        **{"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL, **options},
        preexec_fn=functools.partial(mounts.die_with_parent, os.getpid()),
    )
    watchdog = threading.Timer(_PATIENCE, process.kill)  # then whoever waits for it gets ENOTCONN
    watchdog.start()
    try:
        for _ in range(2400):
            if process.poll() is not None:
                raise Missing(f"{command[0]} ended with {process.returncode}")
            if os.stat(where).st_dev != before:
                break
            select.select([], [], [], 0.05)
        else:
            raise Missing(f"{command[0]} did not mount within two minutes")
        try:
            yield where
        finally:
            mounts.unmount(where)
    finally:
        watchdog.cancel()
        try:
            process.wait(120)
        except subprocess.TimeoutExpired:
            process.send_signal(signal.SIGKILL)
            process.wait()


def fuse(
    program: str, make: list[str], megabytes: int, command: Callable[[str, str, str], list[str]]
) -> Callable[[str], contextlib.AbstractContextManager[str]]:
    """Make a file system of a FUSE program on an image of its own."""

    @contextlib.contextmanager
    def enter(folder: str) -> Iterator[str]:
        image, where = os.path.join(folder, "image"), _folder(folder, "mounted")
        with open(image, "wb") as file:
            file.truncate(megabytes << 20)
        subprocess.run([_need(make[0]), *make[1:], image], check=True, capture_output=True)
        with mounts.loop_device(image) as device, _daemon(command(_need(program), device, where), where):
            yield where

    return enter


def refusing(*refusals: str) -> Callable[[str], contextlib.AbstractContextManager[str]]:
    """Make the file system of ``refusing_fuse.py``."""

    @contextlib.contextmanager
    def make(folder: str) -> Iterator[str]:
        where = _folder(folder, "mounted")
        with _daemon([sys.executable, os.path.join(HERE, "refusing_fuse.py"), where, *refusals], where):
            yield where

    return make


@contextlib.contextmanager
def sshfs(folder: str) -> Iterator[str]:
    """Make an sshfs whose server is a child of ours: the protocol is real, only the encrypted transport is left out."""
    _need("sshfs")
    _need(SFTP_SERVER)
    where, exported = _folder(folder, "mounted"), _folder(folder, "exported")
    ours, theirs = socket.socketpair()
    server = subprocess.Popen([SFTP_SERVER], stdin=theirs, stdout=theirs, preexec_fn=functools.partial(mounts.die_with_parent, os.getpid()))
    theirs.close()
    try:
        with _daemon(["sshfs", "-f", "-o", "passive", f"loopback:{exported}", where], where, stdin=ours, stdout=ours):
            ours.close()
            yield where
    finally:
        ours.close()
        server.kill()
        server.wait()


_TEMPORARY = "leaves a temporary file"
_MISSING = "missing for a moment"
_NAMED = ("named", "named")
_NO_MODE, _NO_OWNER, _NO_ATTRIBUTES = "no mode bits", "no owners", "no attributes"

def _without(reason: str, *tests: str) -> dict[str, str]:
    return {rf"::{test}(\[|$)": reason for test in tests}


# What the functional tests ask for and a place may lack, by the names of the tests; of the parametrized ones some may hold.
_NO_FIFOS = _without(
    "no special files",
    "test_a_fifo_is_written_through",
    "test_a_fifo_waits_for_its_reader_as_open_does",
    "test_exclusive_creation_refuses_special_files",
    "test_a_socket_is_refused_as_open_refuses_it",
    "test_special_files_are_refused",
    "test_copy_of_what_has_no_size",
)
_NO_XATTRS = _without(
    "no attributes",
    "test_a_dropped_writer_aborts_and_warns",
    "test_fallback_in_place_keeps_inode_owner_mode_acl_and_attributes",
)
_NO_CHOWN = _without(
    "no owners",
    "test_root_replaces_a_file_and_its_mode_stays_setuid_too",
    "test_a_new_file_in_a_setgid_directory_gets_its_group",
    "test_a_replaced_file_in_a_setgid_directory_keeps_its_own_group",
    "test_fallback_in_place_keeps_inode_owner_mode_acl_and_attributes",
)
_MODES_IGNORED = _without(
    "no mode bits",
    "test_equal_content_with_other_permissions_gets_them",
    "test_metadata_are_kept_although_the_consumer_made_the_file_anew",
    "test_root_replaces_a_file_and_its_mode_stays_setuid_too",
    "test_the_mode_of_a_replaced_file_stays",
    "test_permissions_asked_for_are_exact",
    "test_a_secret_is_never_readable_by_others_meanwhile",
    "test_not_followed_on_an_ordinary_file_changes_nothing",
    "test_replace_of_a_file_that_may_only_be_read_or_written",
    "test_copy_and_permissions",
    "test_metadata_and_permissions",
    "test_a_mode_that_is_set_meanwhile_stays",
)
_NO_CHMOD = {
    **_MODES_IGNORED,
    **_without(
        "no mode bits",
        "test_made_parents_have_the_mode_that_mkdir_gives",
        "test_a_secret_is_created_closed_to_others",
        "test_the_acl_of_a_replaced_file_stays",
        "test_a_default_acl_changes_nothing_on_a_file_that_had_none",
        "test_a_capability_is_dropped_as_every_write_drops_it",
        "test_a_new_file_in_a_setgid_directory_gets_its_group",
        "test_a_replaced_file_in_a_setgid_directory_keeps_its_own_group",
        "test_fallback_in_place_keeps_inode_owner_mode_acl_and_attributes",
        "test_the_file_behind_a_link_is_replaced_and_the_link_stays",
        "test_exclusive_creation_never_follows_a_link",
        "test_not_followed_the_link_itself_is_replaced",
        "test_not_followed_concerns_only_the_last_part_of_the_path",
        "test_not_followed_there_is_nothing_behind_a_link_to_extend",
        "test_a_link_turned_elsewhere_in_the_block_does_not_change_the_target",
        "test_a_link_to_a_directory_is_a_directory",
    ),
}
_NO_SYMLINKS = _without(
    "no symbolic links",
    "test_standard_output_is_written_through",
    "test_standard_output_that_is_a_file",
    "test_the_backup_of_a_linked_file_is_beside_the_file",
    "test_a_planted_link_under_the_backups_name_is_not_followed",
    "test_a_dangling_link_to_a_missing_directory_is_made_whole",
    "test_the_file_behind_a_link_is_replaced_and_the_link_stays",
    "test_the_staging_file_is_beside_the_file_and_not_beside_the_link",
    "test_a_dangling_link_creates_what_it_names",
    "test_exclusive_creation_never_follows_a_link",
    "test_exclusive_creation_loses_against_a_link_planted_meanwhile",
    "test_a_loop_is_refused_on_entry",
    "test_not_followed_the_link_itself_is_replaced",
    "test_not_followed_concerns_only_the_last_part_of_the_path",
    "test_not_followed_there_is_nothing_behind_a_link_to_extend",
    "test_a_link_turned_elsewhere_in_the_block_does_not_change_the_target",
    "test_a_link_to_a_directory_is_a_directory",
    "test_replace_renames_a_link_itself",
    "test_remove_removes_a_link_itself",
    "test_makedirs_accepts_a_link_to_a_directory",
    "test_copy_follows_links_at_both_ends",
    "test_symlinks",
)
_NO_ABSOLUTE_LINKS = _without(
    "links that lead out cannot be read",
    "test_standard_output_is_written_through",
    "test_standard_output_that_is_a_file",
    "test_the_file_behind_a_link_is_replaced_and_the_link_stays",
    "test_the_staging_file_is_beside_the_file_and_not_beside_the_link",
)
_NO_UNNAMED = {r"::test_order_from_(in|out)side\[.*-unnamed-": "no unnamed files"}
_NO_LINKS = {
    **_without(
        "no hard links",
        "test_the_old_content_stays_under_the_backups_name",
        "test_other_names_of_the_old_file_keep_the_old_content",
    ),
    r"::test_order_from_(in|out)side\[(x-|.*-unnamed-)": "no hard links",
}
_NO_DIRECTORY_SYNC = {
    r"::test_order_from_(in|out)side\[.*-durable\]": "no sync of directories",
    **_without(
        "no sync of directories",
        "test_the_content_is_synced_before_the_first_rename_and_each_directory_once_after_the_last",
        "test_many_directories_are_synced_at_once",
        "test_backup_is_safe_before_the_target_changes",
        "test_unchanged_content_is_synced_too",
    ),
}
_HIDES_WHAT_IS_OPEN = {
    **_without("gives an open file that is removed a name", "test_a_link_in_proc_to_a_deleted_file_is_no_name_for_a_new_one"),
    **_without(_MISSING, "test_the_target_is_never_missing_while_a_backup_is_made"),
}
_NO_ODD_NAMES = _without("names have to be text", "test_every_name_that_the_kernel_takes")
#: such a moment need not be hit in every run
MAY_HOLD = {pattern for pattern, reason in _HIDES_WHAT_IS_OPEN.items() if reason == _MISSING}

PLACES = [
    Place("ext4", block("ext4")),
    Place("xfs", block("xfs")),
    Place("btrfs", block("btrfs")),
    Place("tmpfs", tmpfs),
    Place("overlayfs on tmpfs", overlay),
    Place(
        "NTFS (ntfs-3g)",
        fuse(
            "ntfs-3g",
            ["mkfs.ntfs", "-q", "-F", "-f"],
            256,
            lambda program, device, where: [
                program,
                "-o",
                "no_detach,permissions,streams_interface=xattr",
                device,
                where,
            ],
        ),
        {
            "killed": _TEMPORARY,
            "readers": _MISSING,
            "long_name": "rename leaves a second name",
        },
        {
            **_NO_UNNAMED,
            **_HIDES_WHAT_IS_OPEN,
            **_NO_ODD_NAMES,
            **_without("rename leaves a second name", "test_the_longest_names"),
            **_without("no attributes but the user's", "test_roots_attributes_stay"),
            **_without("no holes by itself", "test_copy_keeps_holes"),
        },
        _NAMED,
    ),
    Place(
        "exFAT (exfat-fuse)",
        fuse("mount.exfat-fuse", ["mkfs.exfat"], 256, lambda program, device, where: [program, "-d", device, where]),
        {
            "killed": _TEMPORARY,
            "readers": _MISSING,
            "mode_kept": _NO_MODE,
            "permissions": _NO_MODE,
            "owner_kept": _NO_OWNER,
            "xattrs_kept": _NO_ATTRIBUTES,
            "symlink": "no symbolic links",
        },
        {
            **_NO_LINKS,
            **_HIDES_WHAT_IS_OPEN,
            **_NO_ODD_NAMES,
            **_NO_FIFOS,
            **_without("no special files", "test_a_staging_path_that_became_something_else_is_refused"),
            **_NO_CHOWN,
            **_NO_XATTRS,
            **_MODES_IGNORED,
            **_without("no mode bits", "test_makedirs_mode_is_for_the_last"),
            **_NO_SYMLINKS,
        },
        ("named", "claimed"),
    ),
    Place(
        "sshfs",
        sshfs,
        {"killed": _TEMPORARY, "readers": _MISSING, "xattrs_kept": _NO_ATTRIBUTES},
        {
            **_NO_UNNAMED,
            **_HIDES_WHAT_IS_OPEN,
            **_NO_FIFOS,
            **_NO_XATTRS,
            **_NO_ABSOLUTE_LINKS,
            **_without("hard links cannot be told", "test_the_old_content_stays_under_the_backups_name"),
            **_without("another error for too long a name", "test_a_backups_name_that_would_be_too_long_is_refused"),
        },
        _NAMED,
    ),
    Place("our FUSE, complete", refusing()),
    Place("our FUSE, no directory fsync (EINVAL)", refusing("directory-fsync=EINVAL"), lacks=_NO_DIRECTORY_SYNC),
    Place("our FUSE, no directory fsync (ENOTSUP)", refusing("directory-fsync=ENOTSUP"), lacks=_NO_DIRECTORY_SYNC),
    Place("our FUSE, no hard links (EPERM)", refusing("hard-links=EPERM"), lacks=_NO_LINKS),
    Place("our FUSE, no hard links (ENOTSUP)", refusing("hard-links=ENOTSUP"), lacks=_NO_LINKS),
    Place("our FUSE, no O_TMPFILE (ENOTSUP)", refusing("O_TMPFILE=ENOTSUP"), {"killed": _TEMPORARY}, _NO_UNNAMED, _NAMED),
    Place("our FUSE, no O_TMPFILE (EINVAL)", refusing("O_TMPFILE=EINVAL"), {"killed": _TEMPORARY}, _NO_UNNAMED, _NAMED),
    Place(
        "our FUSE, no O_TMPFILE, no hard links",
        refusing("O_TMPFILE=ENOTSUP", "hard-links=EPERM"),
        {"killed": _TEMPORARY},
        _NO_LINKS,
        _NAMED,
    ),
    Place(
        "our FUSE, no chmod (EPERM)",
        refusing("chmod=EPERM"),
        {"mode_kept": _NO_MODE, "permissions": "refused: PermissionError EPERM, untouched"},
        _NO_CHMOD,
    ),
    Place(
        "our FUSE, no chmod (ENOTSUP)",
        refusing("chmod=ENOTSUP"),
        {"mode_kept": _NO_MODE, "permissions": "refused: OSError ENOTSUP, untouched"},
        _NO_CHMOD,
    ),
    Place("our FUSE, no chown (EPERM)", refusing("chown=EPERM"), {"owner_kept": _NO_OWNER}, _NO_CHOWN),
    Place("our FUSE, no xattrs (ENOTSUP)", refusing("xattrs=ENOTSUP"), {"xattrs_kept": _NO_ATTRIBUTES}, _NO_XATTRS),
    Place("our FUSE, no xattrs (EPERM)", refusing("xattrs=EPERM"), {"xattrs_kept": _NO_ATTRIBUTES}, _NO_XATTRS),
]
