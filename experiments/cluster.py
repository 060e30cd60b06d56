"""Ray on this machine: started quietly, with its errors left audible."""

import ctypes
import logging
import os
import signal
import socket
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeVar

from nanochat.errors import UserError
from nanochat.planning.hardware import Hardware, usable_cpus

# Each silences one kind of message that tells a user of a one-machine run nothing; some are read when Ray is imported.
QUIET = {
    "RAY_TRAIN_ENABLE_PREEMPTION_WATCHER": "0",
    "RAY_TRAIN_ENABLE_PRINT_PATCH": "0",
    "RAY_ENABLE_UV_RUN_RUNTIME_ENV": "0",
    "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",
    "RAY_DEDUP_LOGS": "1",
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_ENABLE_AUTO_CONNECT": "0",  # or threads that a shutdown leaves behind would start a Ray of their own
    "RAY_CHDIR_TO_TRIAL_DIR": "0",  # paths that the user gave are relative to where the command was started
    "RAY_worker_niceness": "0",  # Ray's 15 would let any other process stop the training
    "RAY_TRAIN_HEALTH_CHECK_INTERVAL_S": "0.5",  # how soon a dead worker is noticed
    "RAY_TRAIN_WORKER_HEALTH_CHECK_TIMEOUT_S": "120",  # how soon one whose process does not answer is
    # How long a thread waits awake: with ten times as much a step on a busy machine takes four times as long (LOG.md,
    # 2026-11-22 and 2026-11-27).
    "GOMP_SPINCOUNT": "10000",
    # Ray Train trains in a thread, whose own heap glibc takes apart whatever it is told to keep (keep_freed_memory):
    # 2,500 page faults a step. One heap for all threads is kept: LOG.md, 2026-11-27.
    "MALLOC_ARENA_MAX": "1",
    "CUBLAS_WORKSPACE_CONFIG": ":4096:8",  # deterministic matrix products on CUDA
}
NOBODY = "http://127.0.0.1:9"  # where no server answers
OWN = {  # of a cluster that is bound to this machine
    "RAY_AUTH_MODE": "disabled",
    # Ray would start a process for each core ahead of its use; none of Ray Train's actors, whose environments differ,
    # could use them, and two slow cores have enough to do: about 3 s less until a worker is there, LOG.md, 2026-11-24.
    "RAY_prestart_worker_first_driver": "0",
    # No such server, and nobody else's is to be asked: what Ray Train's watch over placement groups then reports is
    # that it cannot know, where with two clusters on a machine it would fail, or ask the wrong one.
    "RAY_API_SERVER_ADDRESS": NOBODY,
}
PASSED_ON = ("NANOCHAT_BASE_DIR", "HF_ENDPOINT", "HF_TOKEN")  # to workers on other machines
REACHABLE_S = 5.0
POLL_S = 0.1
LET_GO_S = 2.0  # for a thread to come back from Ray; a poll of a worker that hangs takes one second

T = TypeVar("T")


class RayEnded(UserError):
    """A cluster of this process's own has been ended by somebody else."""

    def __init__(self) -> None:
        super().__init__("Ray was ended from outside", "what was saved is kept, and the same command continues")


def _set(variables: dict[str, str]) -> None:
    for name, value in variables.items():
        os.environ.setdefault(name, value)


_set(QUIET)


@contextmanager
def cluster(
    hardware: Hardware, address: str | None = None, while_starting: Callable[[], None] = lambda: None
) -> Iterator[list[dict[str, float]]]:
    """The resources of each machine of a Ray cluster: of this process's own, gone when the block is left, or of one
    that runs at `address`.

    Args:
        while_starting: called while Ray's processes start, if they do, which would be waited for anyway.

    Raises:
        UserError: there is none at `address`.
    """
    if address:
        _check_reachable(address)
    else:
        _set(OWN)
    import ray

    passed_on = {name: os.environ[name] for name in (*QUIET, *PASSED_ON) if name in os.environ}
    remote = {"address": address, "runtime_env": {"env_vars": passed_on}}
    gpus = hardware.device_count if hardware.device_type == "cuda" else 0
    own = {"address": "local", "num_cpus": hardware.cpu_count, "num_gpus": gpus}
    handlers = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        with _lean_start(while_starting):
            ray.init(
                **(remote if address else own),
                configure_logging=True,
                logging_level=logging.ERROR,
                logging_config=ray.LoggingConfig(log_level="ERROR"),
                log_to_driver=True,
            )
    except SystemExit:  # how Ray's own handler answers a SIGTERM while it starts
        raise KeyboardInterrupt from None
    except (ConnectionError, ValueError) as error:
        raise (_no_cluster(address, error) if address else error) from None
    for number, handler in handlers.items():  # Ray has put its own in place of the caller's
        signal.signal(number, handler)
    try:
        yield [node["Resources"] for node in ray.nodes() if node["Alive"]]
    finally:
        ray.shutdown()


@contextmanager
def _lean_start(while_starting: Callable[[], None]) -> Iterator[None]:
    """What of Ray starts within this block is what one machine needs, of which nothing can be set (so pyproject.toml
    allows one minor version of Ray).

    - Its processes have groups of their own, as its workers do: a SIGTERM to the command's group, from `timeout` or a
      shell, is for the command to answer, which then needs Ray to save.
    - There is no server for a dashboard, at which nobody looks, and no monitor of an autoscaler, which has no machines
      to add: a second of each start and end (LOG.md, 2026-11-27).
    - Once raylet, the last of them, is on its way, `while_starting` is called. In this thread: what another one imports
      could meet Ray's own imports half way.
    """
    from ray._private import ray_constants, services
    from ray._private.node import Node

    def start_no_server(node: Node, **how: Any) -> None:
        """The agents of a full installation (ray[default]) would ask for its address again and again."""
        key, value = ray_constants.DASHBOARD_ADDRESS.encode(), NOBODY.encode()
        node.get_gcs_client().internal_kv_put(key, value, True, ray_constants.KV_NAMESPACE_DASHBOARD)

    started = services.ConsolePopen, Node.start_api_server, Node.start_monitor

    def start(command: Sequence[str], *arguments: Any, **how: Any) -> Any:
        process = started[0](command, *arguments, process_group=0, **how)
        if Path(command[0]).name == "raylet":
            while_starting()
        return process

    services.ConsolePopen = start
    Node.start_api_server, Node.start_monitor = start_no_server, lambda node: None
    try:
        yield
    finally:
        services.ConsolePopen, Node.start_api_server, Node.start_monitor = started


def is_alive() -> bool:
    """Whether the processes run that this one's cluster cannot do without, if it has one."""
    import ray

    node = ray._private.worker._global_node
    ended = {kind for kind, _ in node.dead_processes()} if node else set()
    return not ended & {"gcs_server", "raylet"}


def beside(call: Callable[[], T], while_waiting: Callable[[], None]) -> T:
    """What `call` returns, made in a thread of its own: Ray's long calls would take over SIGINT in the main thread.

    Meanwhile `while_waiting` is called ten times a second, and once when it has ended. What it raises ends the call, as
    soon as that comes back from Ray: a thread that asked Ray for something after its shutdown could end this process.

    Raises:
        BaseException: what `call` or `while_waiting` raised.
        RayEnded: meanwhile.
    """
    returned, raised = list[T](), list[BaseException]()

    def work() -> None:
        try:
            returned.append(call())
        except BaseException as error:
            raised.append(error)

    thread = threading.Thread(target=work, daemon=True)
    thread.start()
    try:
        while thread.is_alive():
            if not is_alive():
                raise RayEnded
            while_waiting()
            time.sleep(POLL_S)
        while_waiting()
    except BaseException:
        _end(thread)
        raise
    if raised:
        raise raised[0]
    return returned[0]


def _end(thread: threading.Thread) -> None:
    """Raise SystemExit in a thread until it has ended, or is not coming back from Ray for a while."""
    until = time.monotonic() + LET_GO_S
    while thread.is_alive() and time.monotonic() < until:
        ctypes.pythonapi.PyThreadState_SetAsyncExc(ctypes.c_ulong(thread.ident or 0), ctypes.py_object(SystemExit))
        thread.join(POLL_S)


def spread(function: Callable[[Any], Any], items: Sequence[Any]) -> Iterator[Any]:
    """`map` as Ray tasks on this machine, as many at a time as it has processors; results in any order.

    Raises:
        whatever the function raises.
    """
    import ray
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

    here = NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=False)
    # The worker that waits here holds all processors; meanwhile they are the tasks'.
    task = ray.remote(num_cpus=0, scheduling_strategy=here)(_call)
    shared, waiting = ray.put(function), []
    try:
        for item in items:
            if len(waiting) >= usable_cpus():
                done, waiting = ray.wait(waiting)
                yield from ray.get(done)
            waiting.append(task.remote(shared, item))
        while waiting:
            done, waiting = ray.wait(waiting)
            yield from ray.get(done)
    except ray.exceptions.RayTaskError as error:
        raise (error.cause if isinstance(error.cause, Exception) else error) from None
    finally:
        for each in waiting:
            ray.cancel(each)


def _call(function: Callable[[Any], Any], item: Any) -> Any:
    return function(item)


def _check_reachable(address: str) -> None:
    """Ask at once what Ray would ask for five minutes. "auto" and the like are Ray's to find."""
    host, separator, port = address.removeprefix("ray://").rpartition(":")
    if not separator or not port.isdigit():
        return
    try:
        socket.create_connection((host, int(port)), timeout=REACHABLE_S).close()
    except OSError as error:
        raise _no_cluster(address, error) from None


def _no_cluster(address: str, error: Exception) -> UserError:
    return UserError(
        f"no Ray cluster answers at {address}: {error}", "check --address; `ray status` on that machine shows it"
    )
