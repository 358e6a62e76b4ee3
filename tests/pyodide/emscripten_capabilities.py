"""A pytest plugin: a test that asks Emscripten for a thread or a process is skipped, and says so.

What is missing is recognised by the error the interpreter raises at that moment, so that no test has to be marked and
everything that can run does.
"""

import pytest

MISSING = {
    "can't start new thread": "needs threads, which this build of Python does not have",
    "emscripten does not support processes": "needs processes, which Emscripten does not have",
}


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item, call):
    report = yield
    if call.excinfo is not None and report.failed:
        for message, reason in MISSING.items():
            if message in str(call.excinfo.value):
                report.outcome = "skipped"
                report.longrepr = (str(item.path), item.location[1] or 0, f"Skipped: {reason}")
    return report
