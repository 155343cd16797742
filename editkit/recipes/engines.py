"""Where calls are made: in this process, in several of this machine, or on a Ray cluster. To the caller each is a function that gives a future.

>>> with engine("processes", 1) as submit:
...     submit(divmod, 7, 2).result()
(3, 1)
"""

import logging
import os
import signal
import sys
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import BrokenExecutor, Future
from contextlib import AbstractContextManager, contextmanager
from types import FrameType
from typing import Any

from editkit.errors import EditError, first_line

Submit = Callable[..., "Future[Any]"]
ENGINES = ("processes", "ray")


def engine(name: str, jobs: int) -> AbstractContextManager[Submit]:
    """`submit(function, *arguments)` of an engine, which runs up to `jobs` calls at once. Raises EditError where it cannot be had."""
    if name not in ENGINES:
        raise EditError(f"there is no engine {name!r}: give one of {', '.join(ENGINES)}")
    if type(jobs) is not int or jobs < 1:
        raise EditError(f"jobs is {jobs!r}: give a whole number from 1 on")
    return _ray(jobs) if name == "ray" else _processes(jobs) if jobs > 1 else _here()


def threads_of(jobs: int) -> int | None:
    """How many threads a call gets when `jobs` run at once on this machine; None for all cores.

    >>> threads_of(1) is None, threads_of(10**6)
    (True, 1)
    """
    return None if jobs == 1 else max(1, (os.cpu_count() or 1) // jobs)


def lost(error: BaseException) -> bool:
    """Whether an error says that the process of a call is gone, and not what the call did."""
    return isinstance(error, BrokenExecutor) or (
        type(error).__module__.startswith("ray.") and not isinstance(getattr(error, "cause", None), Exception)
    )


@contextmanager
def _here() -> Iterator[Submit]:
    def submit(function: Callable[..., Any], *arguments: Any) -> "Future[Any]":
        future: Future[Any] = Future()
        try:
            future.set_result(function(*arguments))
        except Exception as error:
            future.set_exception(error)
        return future

    yield submit


@contextmanager
def _processes(jobs: int) -> Iterator[Submit]:
    """Fresh processes, since threads of torch do not survive a fork. Whatever ends this block ends them."""
    from concurrent.futures import ProcessPoolExecutor
    from multiprocessing import active_children, get_context

    before = set(active_children())
    pool = ProcessPoolExecutor(
        jobs, mp_context=get_context("spawn"), initializer=_begin, initargs=(threads_of(jobs) or 1,)
    )

    def submit(function: Callable[..., Any], *arguments: Any) -> "Future[Any]":
        return pool.submit(_made, function, *arguments)

    try:
        yield submit
    except BaseException:
        workers = set(active_children()) - before
        pool.shutdown(wait=False, cancel_futures=True)
        for process in workers:
            process.terminate()
        for process in workers:
            process.join()
        raise
    pool.shutdown()


def _begin(threads: int) -> None:
    """In a new process: share the cores, end with the parent however that ends, and tidy up on SIGTERM; Ctrl-C is for the parent to hear."""
    from multiprocessing import parent_process

    def stop(number: int, frame: FrameType | None) -> None:
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        raise SystemExit(128 + number)

    def follow() -> None:
        if (parent := parent_process()) is not None:
            parent.join()
            os.kill(os.getpid(), signal.SIGTERM)

    os.environ.setdefault("OMP_NUM_THREADS", str(threads))
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, stop)
    threading.Thread(target=follow, daemon=True).start()


def _made(function: Callable[..., Any], *arguments: Any) -> Any:
    try:
        return function(*arguments)
    except SystemExit as error:  # a pool would send it back and go on; what the call had begun is tidied up by now
        os._exit(error.code if isinstance(error.code, int) else 1)


@contextmanager
def _ray(jobs: int) -> Iterator[Submit]:
    """The cluster at RAY_ADDRESS, or one on this machine for as long as the block lasts. All its machines must have OUT at the same path."""
    try:
        import ray
    except ImportError as error:
        raise EditError("--engine ray needs the package ray: pip install 'editkit[ray]'") from error
    cores, each = os.cpu_count() or 1, threads_of(jobs) or os.cpu_count() or 1
    address = os.environ.get("RAY_ADDRESS")
    begun = not ray.is_initialized()
    if begun:
        own: dict[str, Any] = {} if address else {"num_cpus": max(cores, jobs * each), "include_dashboard": False}
        try:
            ray.init(address=address, log_to_driver=False, logging_level=logging.ERROR, **own)
        except (ConnectionError, ValueError, RuntimeError) as error:
            raise EditError(f"Ray cannot be started or reached ({first_line(error)}): check RAY_ADDRESS") from error
    graphics = 1 if ray.cluster_resources().get("GPU") else 0
    settings: dict[str, Any] = {
        "num_cpus": each,
        "num_gpus": graphics,
        "max_retries": 0,
        "runtime_env": {"env_vars": _settings()},
    }

    def submit(function: Callable[..., Any], *arguments: Any) -> "Future[Any]":
        return ray.remote(**settings)(function).remote(*arguments).future()

    try:
        yield submit
    finally:
        if begun:
            ray.shutdown()


def _settings() -> dict[str, str]:
    """What a worker takes over from this process: where modules are, and editkit's and torch's own settings."""
    names = [name for name in os.environ if name.startswith(("EDITKIT_", "OMP_"))]
    return {name: os.environ[name] for name in names} | {"PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
