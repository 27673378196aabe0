"""One process per GPU: starting them, and being one of them.

What torchrun does for a script the command line does for itself, with the same agent of
PyTorch's, so that whatever ends one process ends all of them, with one message.
"""

from __future__ import annotations

import json
import logging
import os
import signal
import sys
import tempfile
import threading
import time
import uuid
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from typing import TYPE_CHECKING, NamedTuple, NoReturn

if TYPE_CHECKING:
    from torch.distributed.elastic.multiprocessing.errors import ProcessFailure

ERROR_FILE = "TORCHELASTIC_ERROR_FILE"
"""Environment variable of PyTorch's agents: where a process leaves the reason of its failure."""
FAILED = 1
"""Status of a process that ends because of another."""
LOOK = 1.0  # seconds between two looks for the launcher
_RUN_ID = "TORCHELASTIC_RUN_ID"
_LAUNCHER_WATCH = "launcher watch"

AGENT_SIGNALS = [
    getattr(signal, name)
    for name in ("SIGTERM", "SIGINT", "SIGHUP", "SIGQUIT")
    if hasattr(signal, name)  # Windows has two of them
]
"""What the agent handles, and leaves handled when it is done."""


class LaunchedProcess(NamedTuple):
    """One process among those that a launcher started."""

    rank: int
    """Among all."""
    local_rank: int
    """On this machine."""
    processes: int
    """All of them."""
    local_processes: int
    """Those on this machine."""


class ProcessesFailed(RuntimeError):
    """The processes were ended because one of them failed.

    Attributes:
        status: The exit status of the one that failed, 1 where a signal killed it.
    """

    def __init__(self, message: str, status: int) -> None:
        super().__init__(message)
        self.status = status


class Stopped(KeyboardInterrupt):
    """A signal came while the processes ran; they were ended.

    Attributes:
        signum: The signal.
    """

    def __init__(self, signum: int) -> None:
        super().__init__()
        self.signum = signum


def launched_process() -> LaunchedProcess | None:
    """Rank of this process and their number, None where no launcher started it.

    Raises:
        ValueError: The launcher's environment variables are incomplete or no numbers.
    """
    names = ("RANK", "LOCAL_RANK", "WORLD_SIZE")
    if "RANK" not in os.environ or "WORLD_SIZE" not in os.environ:
        return None
    try:
        rank, local_rank, processes = (int(os.environ[name]) for name in names)
        local_processes = int(os.environ.get("LOCAL_WORLD_SIZE", processes))
    except (KeyError, ValueError) as error:
        raise ValueError(f"the environment has no proper {', '.join(names)}: {error}") from error
    if not 0 <= rank < processes:
        raise ValueError(f"RANK={rank} does not fit WORLD_SIZE={processes}")
    return LaunchedProcess(rank, local_rank, processes, local_processes)


def run_processes(arguments: Sequence[str], count: int) -> None:
    """Run `python ARGUMENTS` in `count` processes on this machine until all have ended.

    Each has the environment variables that torchrun sets. When one fails or a signal comes, all
    are ended.

    Raises:
        ProcessesFailed: One failed.
        Stopped: A signal came.
    """
    from torch.distributed.elastic.multiprocessing.api import DefaultLogsSpecs, SignalException
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
    from torch.distributed.launcher.api import LaunchConfig, elastic_launch

    with tempfile.TemporaryDirectory(prefix="pyramid-flow-") as folder, _silence():
        config = LaunchConfig(
            min_nodes=1,
            max_nodes=1,
            nproc_per_node=count,
            run_id=uuid.uuid4().hex,
            rdzv_backend="c10d",
            rdzv_endpoint="127.0.0.1:0",
            local_addr="127.0.0.1",
            max_restarts=0,
            logs_specs=DefaultLogsSpecs(log_dir=folder),
        )
        former = {signum: signal.getsignal(signum) for signum in AGENT_SIGNALS}
        try:
            elastic_launch(config, sys.executable)(*arguments)
        except ChildFailedError as error:
            raise _explained(error.failures, count) from None
        except Exception as error:
            # the agent may stumble while it handles a signal, which is then further down
            reason: BaseException | None = error
            while reason is not None and not isinstance(reason, SignalException):
                reason = reason.__context__
            if reason is None:
                raise
            raise Stopped(int(reason.sigval)) from None
        finally:
            for signum, handler in former.items():
                signal.signal(signum, handler)


def leave_reason(message: str, status: int) -> bool:
    """Leave it to the agent that started this process to tell why it fails.

    Args:
        message: One line.
        status: What the process will exit with.

    Returns:
        Whether there is such an agent.
    """
    path = os.environ.get(ERROR_FILE)
    if path is None:
        return False
    write_reason(path, message, status)
    return True


def fail_at_once(message: str) -> NoReturn:
    """End this process from any of its threads, whatever the others are doing.

    Args:
        message: Why, in one line.
    """
    if not leave_reason(message, FAILED):
        sys.stderr.write(f"{message}\n")
        sys.stderr.flush()
    os._exit(FAILED)


def write_reason(path: str, message: str, status: int) -> None:
    """Leave the reason of a failure in the file `path`, for whoever looks for it there."""
    now = time.time()
    reason = {
        "message": {
            "message": message,
            "extraInfo": {"py_callstack": message, "timestamp": str(int(now))},
        },
        "time": now,  # to a fraction of a second, which tells cause from consequence
        "status": status,
    }
    whole = f"{path}.{os.getpid()}"  # the agent never reads a part, whoever is killed
    with open(whole, "w", encoding="utf-8") as file:
        json.dump(reason, file)
    os.replace(whole, path)


def end_with_launcher() -> None:
    """End this process soon after the agent that started it is gone, whatever it is doing.

    Killed, the agent cannot end the processes itself. Without one nothing is watched: a process
    that was started by hand may outlive the shell.
    """
    parent = os.getppid()
    if _RUN_ID not in os.environ or any(t.name == _LAUNCHER_WATCH for t in threading.enumerate()):
        return

    def watch() -> None:
        while os.getppid() == parent:
            time.sleep(LOOK)
        if os.environ.get("LOCAL_RANK") == "0":
            sys.stderr.write("the launcher of the processes is gone, and they end\n")
            sys.stderr.flush()
        os._exit(FAILED)

    threading.Thread(target=watch, name=_LAUNCHER_WATCH, daemon=True).start()


def ended_by_signals() -> AbstractContextManager[None]:
    """Let SIGINT and SIGTERM end this process at once, even while it waits for another one.

    A handler written in Python would only run when the waiting is over.
    """
    return _handled(signal.SIG_DFL)


def undisturbed() -> AbstractContextManager[None]:
    """Let this process write what it has, which the agent gives it half a minute for."""
    return _handled(signal.SIG_IGN)


@contextmanager
def _handled(handler: signal.Handlers) -> Iterator[None]:
    former = {signum: signal.signal(signum, handler) for signum in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield
    finally:
        for signum, other in former.items():
            signal.signal(signum, other)


@contextmanager
def _silence() -> Iterator[None]:
    """No log of this process: what the agent has to say is said by the exceptions."""
    former = logging.root.manager.disable
    logging.disable(logging.CRITICAL)
    try:
        yield
    finally:
        logging.disable(former)


def _explained(failures: dict[int, ProcessFailure], count: int) -> ProcessesFailed:
    """The failure that the others follow from: an unexplained kill, else the earliest."""
    explained = {r: f.error_file_data for r, f in failures.items() if "time" in f.error_file_data}
    killed = {
        rank: failure
        for rank, failure in failures.items()
        if failure.exitcode < 0 and failure.exitcode != -signal.SIGTERM and rank not in explained
    }
    if killed:
        rank, failure = next(iter(killed.items()))
        name = failure.signal_name()
        hint = ", perhaps for want of memory" if name == "SIGKILL" else ""
        return ProcessesFailed(f"process {rank + 1} of {count} was ended by {name}{hint}", 1)
    if not explained:
        rank, failure = next(iter(failures.items()))
        text = f"process {rank + 1} of {count} ended with status {failure.exitcode}"
        return ProcessesFailed(text, 1)
    reason = min(explained.values(), key=lambda data: data["time"])
    return ProcessesFailed(reason["message"]["message"], reason["status"])
