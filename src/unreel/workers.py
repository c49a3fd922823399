"""Workers: processes that render the clips of one run side by side, here or on a Ray cluster that sees its folders.

joblib starts them. A worker builds the recipient from its config, once, applies the edit, and renders batches into the
same cache, under the same keys and in the same batches as the run itself would: clips are the same, to the last bit
where as many CPU threads (or a GPU of the same kind) compute them.
"""

import fcntl
import logging
import os
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures.process import BrokenProcessPool
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from hydra.core.singleton import Singleton
from joblib import Parallel, delayed
from joblib.externals.loky import get_reusable_executor, process_executor
from joblib.parallel import LokyBackend

from unreel.cache import TensorCache
from unreel.door import built
from unreel.edits import Edit
from unreel.libraries import prepare_libraries
from unreel.models.model import Conditioning, Model
from unreel.records import Prompt
from unreel.rendering import Batch, Rendered, Renderer
from unreel.signals import are_set, held_back, stop_on_signals


@dataclass(frozen=True)
class Order:
    """What a worker renders with: data, from which any process makes the same.

    Attributes:
        recipient: its config, resolved.
        device: "cpu", or a GPU: of several each worker takes its own.
        edit: file of the edit that is applied, or None.
        processes: how many workers there are.
        threads: CPU threads of each; None for torch's own number.
        folder: the run's folder of clips, where workers on one machine share out its GPUs.
        here: the working folder, which paths in the config start from.
        hydra: its global state, by which methods of the user's own are found.
    """

    recipient: Mapping[str, Any]
    device: str
    edit: Path | None
    processes: int
    threads: int | None
    folder: Path
    here: Path
    hydra: Any = field(compare=False, repr=False)


class _Worker:
    """What this process renders with, if it is a worker; kept from one batch to the next."""

    def __init__(self) -> None:
        self.models: list[tuple[Mapping[str, Any], Model]] = []
        self.order: Order | None = None
        self.applied, self.state = ExitStack(), ""
        self.device: str | None = None
        self.renderer: Renderer

    def ready(self, order: Order) -> None:
        """Makes the order's recipient and edit those that this process renders with."""
        if order == self.order:
            return
        self.order = None
        self.applied.close()
        process_executor._USE_PSUTIL = False  # it takes a model for a leak, and would start this worker again and again
        os.chdir(order.here)
        prepare_libraries(order.threads)
        Singleton.set_state(order.hydra)
        model = next((model for config, model in self.models if config == order.recipient), None)
        if model is None:
            self.device = self.device or _device_of(order)
            model = built(order.recipient, device=self.device)
            self.models.append((order.recipient, model))
        cache = TensorCache(order.folder)
        self.renderer = Renderer(model, cache, cache, 1)
        edit = Edit.load(order.edit) if order.edit else None
        self.applied.enter_context(self.renderer.edited(edit))
        self.state, self.order = self.renderer.key(edit), order


_WORKER = _Worker()


def state_of(order: Order) -> str:
    """`Renderer.key` of what is ordered, by a worker."""
    _WORKER.ready(order)
    return _WORKER.state


def rendered(order: Order, state: str, cache: Path, batch: Batch) -> float:
    """Renders a batch, by a worker; the seconds a clip. ValueError where what it would render is not `state`."""
    _WORKER.ready(order)
    if _WORKER.state != state:
        raise ValueError(
            f"workers: found one on {os.uname().nodename} whose weights, code, libraries or device are not those of the"
            " first: expected machines that are alike, or workers.backend=loky"
        )
    return _WORKER.renderer.rendered(TensorCache(cache), batch)


def _device_of(order: Order) -> str:
    """The device of this worker: of several GPUs that it sees one of its own, as long as there are enough.

    ValueError where a GPU is ordered and this machine has none.
    """
    if not order.device.startswith("cuda"):
        return "cpu"
    if not (count := torch.cuda.device_count()):
        raise ValueError(f"workers: found no GPU on {os.uname().nodename}: expected one, as the run has, or device=cpu")
    return f"cuda:{claimed(order.folder, order.processes) % count}"


def claimed(folder: Path, count: int) -> int:
    """A number below `count` that no other process on this machine has, for as long as this one lives."""
    folder.mkdir(parents=True, exist_ok=True)
    while True:
        for number in range(count):
            lock = (folder / f"worker-{os.uname().nodename}-{number}.lock").open("w")
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                lock.close()
            else:
                _CLAIMED.append(lock)
                return number
        time.sleep(0.1)  # one that ends has it still


_CLAIMED: list[Any] = []  # open as long as the process lives


class _Deaf(LokyBackend):
    """joblib's processes, to which no Ctrl-C or SIGTERM comes through: this one hears it, and ends them."""

    def submit(self, *args: Any, **kwargs: Any) -> Any:
        with held_back():  # which those that are started now inherit
            return super().submit(*args, **kwargs)


class _Telling(Parallel):
    """One that tells how many tasks more are done."""

    told: Callable[[int], None] | None = None
    heard = 0

    def print_progress(self) -> None:
        if self.told:
            for i in range(self.heard, self.n_completed_tasks):
                self.told(i)
            self.heard = max(self.heard, self.n_completed_tasks)


@dataclass(frozen=True)
class Workers:
    """How many there are, and where.

    Attributes:
        processes: how many.
        backend: loky, processes on this machine; or ray, on the cluster of RAY_ADDRESS or on this machine.
        device: "cpu", or that of a GPU.
        threads: CPU threads of each; None for one, or for torch's own number beside a GPU.
    """

    processes: int
    backend: str
    device: str
    threads: int | None

    @contextmanager
    def at_work(self) -> Iterator[_Telling]:
        """Inside the `with` block tasks can be given to them. They are ended by what ends it early.

        Raises:
            ValueError: for a worker that died.
        """
        backend: Any = "ray" if self.backend == "ray" else _Deaf()
        more = {"ray_remote_args": _joined_ray(self.device, self.threads or 1)} if self.backend == "ray" else {}
        try:
            with _Telling(self.processes, backend=backend, batch_size=1, pre_dispatch="all", **more) as parallel:
                yield parallel
        except Exception as error:
            if not _died(error):
                raise
            raise ValueError(
                f"found workers.processes={self.processes}, of which one was ended from outside (out of memory?):"
                " expected fewer, or a smaller evaluation.batch; the same command goes on"
            ) from None

    def end(self) -> None:
        """Ends those on this machine, which would wait for more to do, and frees their memory; Ray's end anyway."""
        if self.backend != "ray":
            get_reusable_executor(reuse=True).shutdown(kill_workers=True)


def _died(error: BaseException | None) -> bool:
    """Whether an error, or what it came of, is that a worker died: joblib's, or one of Ray's."""
    while error is not None:
        if isinstance(error, BrokenProcessPool) or type(error).__module__.startswith("ray."):
            return True
        error = error.__cause__ or error.__context__
    return False


def _joined_ray(device: str, threads: int) -> dict[str, int]:
    """What each worker needs of the Ray cluster, after this process joined or started one."""
    import ray
    from ray.util.joblib import register_ray

    os.environ.setdefault("RAY_DISABLE_FAILURE_SIGNAL_HANDLER", "1")  # its own ends in an abort
    if not ray.is_initialized():
        ray.init(log_to_driver=False, logging_level=logging.ERROR)
        if not are_set():
            stop_on_signals()
    register_ray()
    return {"num_cpus": threads, "num_gpus": int(device.startswith("cuda"))}


class PooledRenderer(Renderer):
    """Renders with one recipient by workers; this process neither edits its copy nor renders with it.

    Args:
        model, cache, own, batch: as in Renderer.
        workers: they render.
        recipient: its config, resolved.
    """

    def __init__(
        self, model: Model, cache: TensorCache, own: TensorCache, batch: int, workers: Workers,
        recipient: Mapping[str, Any],
    ) -> None:  # fmt: skip
        super().__init__(model, cache, own, batch)
        self.workers, self.recipient = workers, recipient
        self._parallel: _Telling
        self._order: Order
        self._state = ""

    def edited(self, edit: Edit | None) -> AbstractContextManager[None]:
        return nullcontext()

    def release(self) -> None:
        super().release()
        self.workers.end()

    def here(self) -> Renderer:
        self.workers.end()
        return Renderer(self.model, self.cache, self.own, self.batch)

    def render(
        self, prompts: Sequence[Prompt], seeds: Sequence[int], stage: str, edit: Edit | None = None,
        given: Conditioning | None = None,
    ) -> Rendered:  # fmt: skip
        assert given is None, "what is learned about a model in this process is rendered by it"
        with self.workers.at_work() as self._parallel:
            return super().render(prompts, seeds, stage, edit)

    def key(self, edit: Edit | None) -> str:
        """As in Renderer, told by the first worker that is ready; the others compare theirs with it."""
        folder = self.own.folder.absolute()
        path = folder / f"{edit.hash}.edit.safetensors" if edit else None
        if edit and path and not path.is_file():
            replace(edit, provenance={}).save(path)
        workers = self.workers
        threads = 1 if workers.threads is None and workers.device == "cpu" else workers.threads
        self._order = Order(
            self.recipient, workers.device, path, workers.processes, threads, folder, Path.cwd(), Singleton.get_state()
        )
        (self._state,) = self._parallel([delayed(state_of)(self._order)])
        return self._state

    def _rendered(self, cache: TensorCache, batches: Sequence[Batch], told: Callable[[int], None]) -> list[float]:
        parallel, folder = self._parallel, cache.folder.absolute()
        parallel.heard, parallel.told = 0, lambda done: told(len(batches[done].keys))
        return list(parallel(delayed(rendered)(self._order, self._state, folder, batch) for batch in batches))
