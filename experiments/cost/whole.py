"""A whole run on a GPU of 8 GB at real shapes: the README's command, on random weights in folders of the hub's layout.

python experiments/cost/whole.py FOLDER [overrides]    # FOLDER: of the models, 5 GB, made once; then as train.py

torch may allocate 7.5 GB of the GPU, which leaves half a GB of eight to its context; a run that asks for more ends.
What is rendered is noise, and so is what the judge says of it.
"""

import gc
import json
import runpy
import sys
from pathlib import Path

import open_clip
import torch
from diffusers import MotionAdapter
from safetensors.torch import save_file

sys.path.insert(0, str(Path(__file__).parent))
from benchmark import DEVICE
from counted import built_model

from unreel.files import whole_folder

ROOT, JUDGE, MOST_BYTES = Path(__file__).resolve().parents[2], "ViT-L-14", 7.5e9


def write_models(folder: Path) -> None:
    """Stable Diffusion 1.5, AnimateDiff's motion adapter and the judge, each unless it is there."""
    torch.manual_seed(0)
    if not (folder / "sd15").exists():
        with torch.device(DEVICE):
            pipeline = built_model("sd15").pipeline
        with whole_folder(folder / "sd15") as aside:
            pipeline.to(torch.float16).save_pretrained(aside)
    if not (folder / "motion_adapter").exists():
        adapter = MotionAdapter(motion_max_seq_length=32, use_motion_mid_block=True)
        with whole_folder(folder / "motion_adapter") as aside:
            adapter.half().save_pretrained(aside)
    if not (folder / "judge").exists():
        judge, config = open_clip.create_model(JUDGE), {"model_cfg": open_clip.get_model_config(JUDGE)}
        weights = {name: value.contiguous() for name, value in judge.state_dict().items()}
        with whole_folder(folder / "judge") as aside:
            save_file(weights, aside / "open_clip_model.safetensors")
            (aside / "open_clip_config.json").write_text(json.dumps(config | {"preprocess_cfg": {}}))


def main() -> None:
    if len(sys.argv) < 2:
        sys.exit("found no folder: expected one for the models, as python experiments/cost/whole.py /tmp/models")
    folder = Path(sys.argv[1])
    write_models(folder)
    if DEVICE == "cuda":
        gc.collect()
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()
        torch.cuda.set_per_process_memory_fraction(MOST_BYTES / torch.cuda.get_device_properties(0).total_memory)
    sys.argv[1:] = [
        "t2i=sd15", "t2v=animatediff", "concept=van_gogh", "trainer=gpu_8gb", "rendering=fast", "logger=none",
        f"t2i.folder={folder / 'sd15'}", f"t2v.animatediff.folder={folder / 'sd15'}",
        f"t2v.animatediff.motion_adapter={folder / 'motion_adapter'}", f"judge.model=local-dir:{folder / 'judge'}",
        "judge.pretrained=null", *sys.argv[2:],
    ]  # fmt: skip
    try:
        runpy.run_path(str(ROOT / "train.py"), run_name="__main__")
    finally:
        if DEVICE == "cuda":
            most = torch.cuda.max_memory_allocated() / 1e9
            print(f"{torch.cuda.get_device_name()}: torch allocated at most {most:.2f} GB")


if __name__ == "__main__":
    main()
