"""How the libraries are to behave in a process of ours: so many threads, the same bits again, no bars and warnings."""

import logging
import os
import warnings

import diffusers
import torch
import transformers


def prepare_libraries(threads: int | None) -> None:
    """So many CPU threads, None for torch's own number; the same bits again on a GPU; no bars and warnings.

    The warnings are about things that we set on purpose. On a GPU the gradients of convolutions that torch takes by
    itself differ from one time to the next; it is told to take those that do not. Where it has none it warns, and that
    warning is shown.
    """
    if threads is not None:
        torch.set_num_threads(threads)
    if torch.cuda.is_available():
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # without it cuBLAS may choose anew every time
        torch.use_deterministic_algorithms(True, warn_only=True)
    os.environ.setdefault("WANDB_SILENT", "true")  # what a user needs of it is told by `told_of`
    for library in (diffusers, transformers):
        library.utils.logging.set_verbosity_error()
        library.utils.logging.disable_progress_bar()
    for name in ("pytorch_lightning", "lightning_fabric", "lightning.pytorch"):
        logging.getLogger(name).setLevel(logging.ERROR)
    warnings.filterwarnings("ignore", module=r"pytorch_lightning|lightning|torch|diffusers|transformers|wandb|pydantic")
    warnings.filterwarnings("default", message=".*does not have a deterministic implementation")
