"""A pytest plugin: a test that asks Emscripten for a thread, a process or a hard link is skipped, and says so.

What is missing is recognised by the error that the interpreter raises at that moment in the test itself, so that everything
that can run does. An error of that kind out of the library fails the test.
"""

import pytest

MISSING = {
    "can't start new thread": "needs threads, which this build of Python does not have",
    "emscripten does not support processes": "needs processes, which Emscripten does not have",
    "module 'os' has no attribute 'link'": "needs hard links, which Emscripten does not have",
    "module 'os' has no attribute 'mknod'": "needs device nodes, which Emscripten does not have",
    "WebAssembly stack switching not supported": "needs asyncio.run, which this JavaScript runtime cannot do",
    "Function not implemented": "needs fork, which Emscripten does not have",
    "module 'os' has no attribute 'mkfifo'": "needs FIFOs, which Emscripten does not have",
    "module 'socket' has no attribute 'AF_UNIX'": "needs sockets with names, which Emscripten does not have",
}
# By name, what Emscripten's kernel in JavaScript answers otherwise.
DIFFERENT = {
    "test_the_old_content_stays_under_the_backups_name": "asks for a hard link, which Emscripten does not have",
    "test_every_name_that_the_kernel_takes": "Emscripten's names are UTF-16, and not those bytes",
    "test_a_name_too_long": "Emscripten's file system in memory does not limit names",
    "test_a_backups_name_that_would_be_too_long": "Emscripten's file system in memory does not limit names",
    "test_copy_and_permissions": "Emscripten's umask is 0, whatever was set",
    "test_a_directory_that_is_renamed_while_its_descriptor_is_open": "Emscripten's descriptors of directories are paths",
    "test_the_descriptor_is_not_inherited": "Emscripten has no processes that could inherit a descriptor",
}
LINKS = "Emscripten's file system in memory answers otherwise where a link leads nowhere; run on the machine's"
DIFFERENT_IN_MEMORY = {
    "test_makedirs_mode_is_for_the_last": "Emscripten's mkdir knows no umask",
    "test_the_backup_of_a_linked_file_is_beside_the_file": LINKS,
    "test_a_dangling_link_to_a_missing_directory_is_made_whole": LINKS,
    "test_a_loop_of_links[by_path]": LINKS,
}


def pytest_collection_modifyitems(config, items):
    different = DIFFERENT | (DIFFERENT_IN_MEMORY if config.option.basetemp.startswith("/tmp") else {})
    for item in items:
        for name, reason in different.items():
            if item.name.startswith(name):
                item.add_marker(pytest.mark.skip(reason=reason))


def raised_in_test(item, excinfo):
    """Whether the test itself made the call: what the library raises is never excused."""
    return str(excinfo.traceback[-1].path).find("/atomicio/") < 0


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item, call):
    report = yield
    if call.excinfo is not None and report.failed and raised_in_test(item, call.excinfo):
        for message, reason in MISSING.items():
            if message in str(call.excinfo.value):
                report.outcome = "skipped"
                report.longrepr = (str(item.path), item.location[1] or 0, f"Skipped: {reason}")
    return report
