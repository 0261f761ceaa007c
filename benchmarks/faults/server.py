"""The process from which training commands are forked. Reads orders and writes answers as lines of JSON.

The answer to {"fork": ORDER} is {"pid": n}; to {"poll": n} it is {"code": c}, null while it runs, negative if killed.
At the end of the input the server and all its forks end.
"""

import contextlib
import json
import os
import signal
import sys
import threading

from faults import forked


def main() -> None:
    forked.preload()
    answers = os.fdopen(os.dup(1), "w", buffering=1)
    os.dup2(2, 1)  # so that output of imports is not read as an answer
    running: set[int] = set()
    print(json.dumps({"ready": os.getpid(), "threads": len(os.listdir("/proc/self/task"))}), file=answers)
    for line in sys.stdin:
        order = json.loads(line)
        if "fork" in order:
            assert threading.active_count() == 1, "a process with threads cannot be forked safely"
            pid = forked.fork(order["fork"])
            running.add(pid)
            print(json.dumps({"pid": pid}), file=answers)
        else:
            pid, status = os.waitpid(order["poll"], os.WNOHANG)
            running.discard(pid)
            print(json.dumps({"code": os.waitstatus_to_exitcode(status) if pid else None}), file=answers)
    for pid in running:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(pid, signal.SIGKILL)


if __name__ == "__main__":
    main()
