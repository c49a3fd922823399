"""A page to try it, on this machine alone: any prompt, its clips before an edit and after it, side by side.

python -m unreel.demo runs=runs
python -m unreel.demo edit=runs/train/.../edit.safetensors t2v=[zoo_animatediff,zoo_unet3d] port=7861

It needs `pip install -e ".[demo]"`, or is started by `make demo`.
"""

import importlib.util
import os
import socket
import sys
import tempfile
from pathlib import Path

import hydra
from omegaconf import DictConfig

from unreel import door
from unreel.cli import as_job, command
from unreel.offers import Offer, offer_of, offers_in

HOST = "127.0.0.1"  # nobody else can reach it


def check(config: DictConfig) -> None:
    """ValueError for settings that will not do, a port that is taken, or when gradio is not installed."""
    door.check_settings(config)
    door.check_arguments(config.get("t2v"), "t2v")
    if config.edit and len(door.edits_of(config)) > 1:
        raise ValueError(f"found edit={config.edit}: expected one file, as the one that evaluate.py makes of several")
    if importlib.util.find_spec("gradio") is None:
        raise ValueError('gradio is missing: pip install -e ".[demo]"')
    with socket.socket() as tried:
        tried.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)  # one that a page before this left is free
        try:
            tried.bind((HOST, config.port))
        except OSError as error:
            raise ValueError(
                f"found port={config.port}: {error.strerror}: expected a free one, as port={config.port % 65535 + 1}"
            ) from None


def offers_of(config: DictConfig) -> list[Offer]:
    """What can be tried: the edit that is given, and all finished runs. ValueError when there is nothing."""
    given = [offer_of(config.edit)] if config.edit else []
    found, damaged = offers_in(Path(config.runs))
    if not given and not found:
        why = f" ({damaged[0]})" if damaged else ""
        raise ValueError(
            f"{config.runs} has no finished run{why}: expected one, as of `make run`, or edit=.../edit.safetensors"
        )
    for line in damaged:
        print(f"unreel: left out: {' '.join(line.split())}", file=sys.stderr)
    return given + found


def keep_to_this_machine() -> None:
    """No usage figures, no look at the hub, and no proxy between the page and this process."""
    os.environ["GRADIO_ANALYTICS_ENABLED"] = "False"
    os.environ.setdefault("HF_HUB_OFFLINE", "1")
    apart = os.environ.get("no_proxy") or os.environ.get("NO_PROXY")
    os.environ["no_proxy"] = f"{apart},{HOST}" if apart else HOST


@hydra.main(version_base="1.3", config_path="../../conf", config_name="demo")
@as_job
def main(config: DictConfig) -> Path:
    check(config)
    first = offers_of(config)[0]
    keep_to_this_machine()
    with tempfile.TemporaryDirectory(prefix="unreel_demo_") as folder:
        os.environ["GRADIO_TEMP_DIR"] = folder  # gradio serves what is in there, and nothing else
        from unreel.demo_page import serve  # with torch, diffusers and gradio: seconds, which no error above waits for

        serve(config, HOST, Path(folder), first)
    return Path(config.runs)


if __name__ == "__main__":
    try:
        command(main)
    except SystemExit as ended:  # at once: threads of torch and gradio that are still busy would abort a slower end
        if isinstance(ended.code, str):
            print(ended.code, file=sys.stderr)
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(ended.code if isinstance(ended.code, int) else int(ended.code is not None))
