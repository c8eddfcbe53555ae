"""In the tests' process: runs pytest with the artifact's stand-in as a module, and exits 0 only if a test passed.

Exit codes are pytest's; 5 where nothing was tested, and 6 where the artifact's process did not last to the end.
"""

from __future__ import annotations

import os
import sys
from typing import Any

from guardlearn.guards.apart import proxies

__all__ = ["main"]


class _Watch:
    """Counts passes, and says when a test runs."""

    def __init__(self, connection: proxies.Connection) -> None:
        self.connection, self.passed = connection, 0

    def pytest_runtest_logreport(self, report: Any) -> None:
        self.passed += report.when == "call" and report.passed

    def pytest_runtest_setup(self) -> None:
        self.connection.in_test = True

    def pytest_runtest_teardown(self) -> None:
        self.connection.in_test = False


def main(number: int, name: str, options: list[str]) -> None:
    """Run pytest and end the process.

    Args:
        number: socket that leads to the artifact.
        name: module name of the artifact.
        options: pytest's command line.
    """
    connection = proxies.install(number, name)
    import pytest

    watch = _Watch(connection)
    code = int(pytest.main(options, plugins=[watch]))
    if code == 0 and not watch.passed:
        code = 5
    if code == 0 and connection.lost:
        code = 6
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)
