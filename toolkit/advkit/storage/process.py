"""Processes by name: host, pid and birth, since pids recur. Who holds a lock, and whose temporary files these are."""

from __future__ import annotations

import errno
import os
import re
import socket
from contextlib import suppress
from pathlib import Path

HOST = re.sub(r"[^A-Za-z0-9._-]", "_", socket.gethostname())
OWNER = r"(?P<host>[A-Za-z0-9._-]*)@(?P<pid>[0-9]{1,9})@(?P<birth>[0-9a-f.-]*)"


def owner() -> str:
    """This process, in the form of `OWNER`."""
    return f"{HOST}@{os.getpid()}@{birth(os.getpid())}"


def dead(process: re.Match[str]) -> bool:
    """Whether that was a process of this host and has ended; False if it can not be known."""
    if process["host"] != HOST or os.name == "nt":  # os.kill(pid, 0) would be Ctrl-C there
        return False
    try:
        os.kill(int(process["pid"]), 0)
    except OSError as error:
        return error.errno == errno.ESRCH
    return birth(int(process["pid"])) != process["birth"]


def birth(pid: int) -> str:
    """Boot id and clock ticks from boot to the start of a process; "" for a zombie, or without /proc."""
    with suppress(OSError):
        fields = Path(f"/proc/{pid}/stat").read_bytes().rpartition(b")")[2].split()
        boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
        return "" if fields[0] in (b"Z", b"X") else f"{boot}.{fields[19].decode()}"
    return ""
