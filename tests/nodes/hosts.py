"""Two network namespaces of this machine, which programs in them see as two machines."""

import contextlib
import os
import shutil
import subprocess
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import IO

NAMES = "node-a", "node-b"
ADDRESSES = "10.77.0.1", "10.77.0.2"
AVAILABLE = os.geteuid() == 0 and shutil.which("ip") is not None and shutil.which("unshare") is not None
"""Whether namespaces can be created here."""


class Hosts:
    """Two machines that share the file system.

    Args:
        label: begins the names of the namespaces, which are those of the whole machine.
    """

    def __init__(self, label: str) -> None:
        self.label = label

    def _ip(self, *words: str) -> None:
        subprocess.run(["ip", *words], check=True, capture_output=True)

    def create(self) -> None:
        """Creates both machines and the cable between them, each with a name that resolves to its address."""
        for index in range(2):
            self._ip("netns", "add", self._space(index))
            self._ip("-n", self._space(index), "link", "set", "lo", "up")
            folder = Path("/etc/netns", self._space(index))
            folder.mkdir(parents=True)
            lines = ("127.0.0.1 localhost", *map(" ".join, zip(ADDRESSES, NAMES, strict=True)))
            (folder / "hosts").write_text("\n".join(lines) + "\n")
        a, b = map(self._space, range(2))
        self._ip("link", "add", "cable", "netns", a, "type", "veth", "peer", "name", "cable", "netns", b)
        for index in range(2):
            self._ip("-n", self._space(index), "addr", "add", f"{ADDRESSES[index]}/24", "dev", "cable")
        self.plug(True)

    def remove(self) -> None:
        """Removes both machines."""
        for index in range(2):
            with contextlib.suppress(subprocess.CalledProcessError):
                self._ip("netns", "delete", self._space(index))
            shutil.rmtree(Path("/etc/netns", self._space(index)), ignore_errors=True)

    def plug(self, up: bool) -> None:
        """Plugs the cable in or pulls it out; at both ends, as a machine without power would."""
        for index in range(2):
            self._ip("-n", self._space(index), "link", "set", "cable", "up" if up else "down")

    def start(
        self, index: int, command: Sequence[str], cwd: Path, env: Mapping[str, str], out: IO[str]
    ) -> subprocess.Popen[bytes]:
        """Starts a command on one machine, in a session of its own."""
        named = 'hostname "$0"; exec "$@"'
        words = [
            "ip",
            "netns",
            "exec",
            self._space(index),
            "unshare",
            "--uts",
            "sh",
            "-c",
            named,
            NAMES[index],
            *command,
        ]
        return subprocess.Popen(words, cwd=cwd, env=dict(env), stdout=out, stderr=out, start_new_session=True)

    def _space(self, index: int) -> str:
        return f"{self.label}-{index}"


@contextlib.contextmanager
def two_hosts() -> Iterator[Hosts]:
    """Gives two machines, which exist only within it."""
    hosts = Hosts(f"dqs-{os.getpid()}")
    try:
        hosts.create()
        yield hosts
    finally:
        hosts.remove()
