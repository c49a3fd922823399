"""What the two commands are around their work: signals, sweeps, errors in one line. It needs neither torch nor W&B."""

import errno
import functools
import math
import os
import re
import signal
import sys
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

from hydra.core.hydra_config import HydraConfig
from hydra.errors import InstantiationException
from omegaconf import DictConfig
from omegaconf.errors import MissingMandatoryValue, OmegaConfBaseException
from pydantic import ValidationError

from unreel.jobs import is_sweep, record_job
from unreel.signals import Stopped, are_set, ignore_signals, last, stop_on_signals
from unreel.sweeps import objectives_of
from unreel.validation import told

_MOST_SAID = 1000  # characters of an error
_MOST_OF_A_KEY = 200  # characters; Hydra looks for files of that name


def command(main: Callable[[], Any]) -> None:
    """Runs a Hydra command; `key=~/folder` means the home folder, which no shell puts there and Hydra cannot read."""
    home = str(Path.home())
    sys.argv = [re.sub(r"^([\w.@+/]+=)~(?=/|$)", lambda found: found[1] + home, argument) for argument in sys.argv]
    if long := next((a for a in sys.argv[1:] if len(a.partition("=")[0]) > _MOST_OF_A_KEY), None):
        sys.exit(f"unreel: found the key {long[:60]}...: expected at most {_MOST_OF_A_KEY} characters before the '='")
    stop_on_signals()
    try:
        main()
    except (Stopped, KeyboardInterrupt) as raised:
        stopped = last(raised)
        if os.environ.get("LOCAL_RANK", "0") == "0":  # of several processes of a training
            print(f"unreel: {stopped}. The same command goes on where it can", file=sys.stderr)
        sys.exit(stopped.status)
    finally:
        ignore_signals()


def as_job(main: Callable[[DictConfig], Path]) -> Callable[[DictConfig], Any]:
    """A command as Hydra runs it, alone or as one of a sweep.

    Ends with one line instead of a traceback when what the user gave will not do; in a sweep the others go on. Returns
    what a sweeper asks for: the figures of `objectives`, None of a run that failed or lacks one.
    """

    @functools.wraps(main)
    def job(config: DictConfig) -> Any:
        if is_sweep():
            os.chdir(HydraConfig.get().runtime.cwd)  # launchers start their workers anywhere
            record_job(config)
            if not are_set():  # in a worker
                stop_on_signals(again=signal.SIG_IGN)  # Ctrl-C reaches it from the terminal, and is passed on to it
        folder, error, status = "", "", 1
        try:
            objectives = objectives_of(config)
            folder, status = str(main(config)), 0
        except Stopped as stopped:
            error, status = str(stopped), stopped.status
            raise
        except Exception as caught:
            error = one_line(caught)
            if not is_sweep():
                if "closed by peer" in str(caught):  # the process of this training that ended first says why
                    sys.exit(1)
                if not error:
                    raise
                sys.exit(f"unreel: {error}")
            if not error:
                traceback.print_exc()
                error = f"{type(caught).__name__}: {caught}"
            print(f"unreel: {error}", file=sys.stderr)
        finally:
            if wandb := sys.modules.get("wandb"):
                wandb.finish(status)  # or, after an error, the next run of a sweep would write into this one
            if is_sweep():
                record_job(config, folder, error or ("" if folder else "it ended early"))
        if error or not objectives:
            return None
        from unreel import scores, tables

        found = scores.read_scores(Path(folder) / "scores.jsonl")
        values = [tables.left(found, column) for column in objectives]
        if any(map(math.isnan, values)):
            return None
        return values if len(values) > 1 else values[0]

    return job


def one_line(error: BaseException) -> str:
    """What a user can do something about, as one line of a length that can be read; "" for all else."""
    said = " ".join(_said(error).split())
    return said if len(said) <= _MOST_SAID else f"{said[: _MOST_SAID // 2]} ... {said[-_MOST_SAID // 2 :]}"


def _said(error: BaseException | None) -> str:
    if isinstance(error, MissingMandatoryValue):
        return f"{error.full_key} is missing: expected {error.full_key}=..."
    if (isinstance(error, OSError) and error.errno == errno.ENOSPC) or "os error 28" in str(error):
        where = f" ({error.filename})" if isinstance(error, OSError) and error.filename else ""
        return f"the disk is full{where}: free some space and give the same command again"
    if isinstance(error, OSError) and error.filename and error.strerror:
        return f"{error.filename}: {error.strerror}: expected a place that can be read and written"
    if type(error).__name__ == "OutOfMemoryError":  # torch's, which is not imported here
        said = ". ".join(str(error).split(". ")[:3]).rstrip(".")
        less = "t2v.NAME.denoiser_storage=float8 or t2v.NAME.group_offload=true"
        return f"{said}: expected trainer=gpu_8gb, a smaller evaluation.batch, {less}"
    if type(error).__module__.startswith("wandb"):
        return f"W&B: {error}: expected `wandb login`, logger.offline=true or logger=none"
    if isinstance(error, ValidationError):
        return told(error)
    if isinstance(error, ValueError | OSError | OmegaConfBaseException):
        return str(error)
    if isinstance(error, RuntimeError) and "home directory" in str(error):  # Path.expanduser's, of ~nobody/x
        return f"{error}: expected a path whose ~ is somebody's on this machine"
    if isinstance(error, InstantiationException) and error.__cause__ is not None:
        located = isinstance(error.__cause__, ImportError)  # Hydra says of what, and what it looked for
        return str(error).splitlines()[0] if located else _said(error.__cause__)
    return ""
