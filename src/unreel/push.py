"""Sends a finished run's edit, its card and its exports to a repository on the Hugging Face hub.

python -m unreel.push runs/train/... repo=USER/NAME

The run folder, then repo: whose and which, made private unless it is there; private=false makes a public one. The token
is that of HF_TOKEN, or of `hf auth login`. Pipeline folders stay here: they are links to the base model's files.
"""

import sys
from pathlib import Path
from typing import Any

from huggingface_hub import HfApi, get_token, is_offline_mode
from huggingface_hub.errors import HfHubHTTPError, HTTPError
from huggingface_hub.utils import validate_repo_id
from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException

from unreel.status import read_status

GIVEN = {"repo": None, "private": True}
_USAGE = "expected python -m unreel.push RUN_FOLDER repo=USER/NAME"
_SENT = (
    "README.md",
    "edit.safetensors",
    "text_encoder/*",
    "text_encoder_2/*",
    "text_encoder_3/*",
    "unet/*",
    "transformer/*",
    "lora/*",
    "comfyui/*/*",
)


def files_of(run: Path) -> list[str]:
    """What is sent of a run folder, as paths in it: files of its own, no links.

    Raises:
        ValueError: for a folder that is no finished run's, or that has no card.
    """
    status = read_status(run)
    if status is None:
        raise ValueError(f"{run} is no run's folder: {_USAGE}")
    if status.status != "done":
        raise ValueError(f"{run} is {status.status}, not done: give its command again first")
    if not (run / "README.md").is_file():
        raise ValueError(f"{run} has no README.md: give its command again with export=[transformers], say")
    found = [path for below in ("", "edits/*/") for pattern in _SENT for path in run.glob(f"{below}{pattern}")]
    return sorted(path.relative_to(run).as_posix() for path in found if path.is_file() and not path.is_symlink())


def push(run: Path, repo: str, private: bool = True) -> str:
    """Sends a run; the address of the commit.

    Raises:
        ValueError: for what cannot be sent, before anything is.
    """
    files = files_of(run)
    if repo.count("/") != 1:
        raise ValueError(f"found repo={repo!r:.200}: expected repo=USER/NAME")
    validate_repo_id(repo)
    if is_offline_mode():
        raise ValueError("HF_HUB_OFFLINE is set: expected a connection to the hub; unset it to send anything")
    if not get_token():
        raise ValueError("found no token of the hub: expected HF_TOKEN in the environment, or `hf auth login` before")
    hub = HfApi()
    hub.create_repo(repo, private=private, exist_ok=True)
    return str(
        hub.upload_folder(repo_id=repo, folder_path=run, allow_patterns=files, commit_message=f"unreel: {run.name}")
    )


def main() -> None:
    try:
        folders = [argument for argument in sys.argv[1:] if "=" not in argument]
        given: Any = OmegaConf.merge(
            OmegaConf.create(GIVEN), OmegaConf.from_dotlist([a for a in sys.argv[1:] if "=" in a])
        )
        if unknown := sorted(set(given) - set(GIVEN)):
            raise ValueError(f"found {', '.join(map(str, unknown))}: expected {', '.join(GIVEN)}")
        if len(folders) != 1 or not isinstance(given.repo, str) or not isinstance(given.private, bool):
            raise ValueError(_USAGE)
        print(push(Path(folders[0]).expanduser(), given.repo, given.private))
    except HfHubHTTPError as error:
        said = error.server_message or str(error)
        sys.exit(f"unreel: the hub refused: {' '.join(said.split())}")
    except HTTPError as error:  # no answer at all
        sys.exit(f"unreel: the hub cannot be reached: {' '.join(str(error).split())}")
    except (ValueError, OSError, OmegaConfBaseException) as error:
        sys.exit(f"unreel: {' '.join(str(error).split())}")


if __name__ == "__main__":
    main()
