"""The process that does nothing but hold the port, and start the one that serves again when it has died.

The worker inherits the listening socket, so that what clients send while there is none waits in the backlog, and one
end of a socket pair, on which it says when it is ready, and whose end of file tells it of the supervisor's death.

An engine's code can take its process with it (SIGSEGV), and so can the kernel when memory runs out (SIGKILL). A worker
that ends by itself has said why: its status is then the command's. Signals are waited for, never handled: nothing here
runs in the middle of anything else.
"""

from __future__ import annotations

import contextlib
import logging
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from threading import Thread

from rm_runtime.engines.control_groups import group_folders, words_of
from rm_runtime.serving.errors import ServingError
from rm_runtime.serving.logs import log_event

_SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGCHLD)
_OWN_STATUSES = (0, 1, 2)
"""What rm-runtime ends with when nothing killed it."""
_STEADY_SECONDS = 60
"""A worker that was ready for so long did not die of what the one before it died of."""


def listening(host: str, port: int) -> socket.socket:
    """A socket that listens on that address. Raises ServingError if it cannot be had."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    # asyncio sends without delay (TCP_NODELAY) only where the protocol is named, which socket.create_server does not
    listener = socket.socket(family, socket.SOCK_STREAM, socket.IPPROTO_TCP)
    try:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind((host, port))
        listener.listen()
    except OSError as error:
        listener.close()
        raise ServingError(f"cannot listen on {host} port {port}: {error.strerror}; choose another") from None
    return listener


def supervise(listener: socket.socket, arguments: Sequence[str], restarts: int) -> int:
    """Run `rm-runtime serve --worker ... <arguments>` until it ends, and again when it died; its exit status.

    restarts: how often in a row, until a worker was ready for a minute. SIGTERM and SIGINT are passed on. Raises
    ServingError that says what the last worker died of.
    """
    signal.pthread_sigmask(signal.SIG_BLOCK, _SIGNALS)
    signals = deaths = 0
    while True:
        kills = out_of_memory_kills()
        ours, worker = _start(listener, arguments)
        while worker.poll() is None:
            if signal.sigwait(_SIGNALS) != signal.SIGCHLD:
                signals += 1
                listener.close()  # the worker has its own: once it closes that, clients are refused
                worker.send_signal(signal.SIGTERM if signals < 3 else signal.SIGKILL)
        lived = _ready_seconds(ours)
        if worker.returncode in _OWN_STATUSES:
            return worker.returncode
        if signals and worker.returncode == -signal.SIGTERM:  # before it could listen to it
            return 0
        reason = cause_of_death(worker.returncode, out_of_memory_kills() - kills)
        deaths = 1 if lived > _STEADY_SECONDS else deaths + 1
        again = not signals and deaths <= restarts
        log_event("worker died", logging.ERROR, pid=worker.pid, reason=reason, ready_seconds=lived, restarted=again)
        if not again:
            raise ServingError(f"the worker died {f'{deaths} times, at last of' if deaths > 1 else 'of'} {reason}")


def live_and_die_with(lifeline: socket.socket) -> None:
    """Of a worker: hear signals, and take the supervisor's end for a SIGTERM."""

    def wait() -> None:
        with contextlib.suppress(ConnectionResetError):  # what it was told may not have been read
            lifeline.recv(1)
        os.kill(os.getpid(), signal.SIGTERM)

    signal.pthread_sigmask(signal.SIG_UNBLOCK, _SIGNALS)
    Thread(target=wait, name="lifeline", daemon=True).start()


def tell_ready(lifeline: socket.socket) -> None:
    """Of a worker, once. The clock is the machine's, the same in both processes."""
    with contextlib.suppress(OSError):  # the supervisor is dead, which the other thread sees
        lifeline.sendall(repr(time.monotonic()).encode())


def _start(listener: socket.socket, arguments: Sequence[str]) -> tuple[socket.socket, subprocess.Popen[bytes]]:
    """The supervisor's end of the pair, and the worker. Started anew, not forked, it has nothing of this process."""
    ours, its = socket.socketpair()
    with its:
        inherited = (listener.fileno(), its.fileno())
        command = [sys.executable, "-P", "-m", "rm_runtime", "serve", "--worker", *map(str, inherited), *arguments]
        # In a group of its own: Ctrl-C in a terminal is for the supervisor, which passes it on once
        worker = subprocess.Popen(command, pass_fds=inherited, stdin=subprocess.DEVNULL, process_group=0)
    log_event("worker started", pid=worker.pid)
    return ours, worker


def _ready_seconds(ours: socket.socket) -> float:
    """How long ago the worker, which is dead, was ready; 0 if it never was."""
    with ours, contextlib.suppress(OSError):
        ours.setblocking(False)
        if told := ours.recv(64):
            return round(time.monotonic() - float(told), 1)
    return 0.0


def cause_of_death(status: int, kills: int) -> str:
    """What a process died of that ended with this status. kills: how many died of memory meanwhile."""
    if status > 0:
        return f"exit status {status}"
    name = signal.Signals(-status).name
    if status != -signal.SIGKILL:
        return f"{name} ({signal.strsignal(-status)})"
    if kills > 0:
        return f"{name}: out of memory, says its control group"
    return f"{name}: by hand, or out of memory; the kernel's log knows"


def out_of_memory_kills(root: Path = Path("/")) -> int:
    """How many processes of this control group the kernel killed for want of memory; 0 where it does not tell.

    Source: Linux, Documentation/admin-guide/cgroup-v2.rst (memory.events), cgroup-v1/memory.rst (memory.oom_control).
    """
    for group in group_folders("memory", root):
        words = words_of(group / "memory.events") or words_of(group / "memory.oom_control")
        counts = dict(zip(words[::2], words[1::2], strict=False))
        if "oom_kill" in counts:
            return int(counts["oom_kill"])
    return 0
