"""The process that training commands are forked of. Reads orders in JSON, a line each; answers each with a line.

{"fork": ORDER} is answered by {"pid": n}; {"poll": n} by {"code": c}, null while it runs; a signal's is negative.
The end of the input ends it, and every process that it forked.
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
    os.dup2(2, 1)  # what an import prints is no answer
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
