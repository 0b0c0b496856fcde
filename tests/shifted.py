"""Either command on a machine whose wall clock is wrong: `python -m tests.shifted SECONDS PACKAGE ARGUMENTS`."""

import runpy
import sys
import time

from sidecar.clock import SystemClock


def shift(seconds: int) -> None:
    """Sets this process's wall clock ahead, or back; its steady one stays."""

    def now_ms(_: SystemClock) -> int:
        return time.time_ns() // 1_000_000 + seconds * 1000

    SystemClock.now_ms = now_ms  # type: ignore[method-assign,assignment]


if __name__ == "__main__":
    shift(int(sys.argv[1]))
    sys.argv = sys.argv[2:]
    runpy.run_module(sys.argv[0], run_name="__main__", alter_sys=True)
