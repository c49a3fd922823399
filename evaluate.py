"""unreel: the same story entered at a saved edit. Scores it on any recipient that it fits, without training.

python evaluate.py edit=runs/train/.../edit.safetensors t2v=zoo_text2video_zero
python evaluate.py edit=[A/edit.safetensors,B/edit.safetensors]
"""

from pathlib import Path

import hydra
from omegaconf import DictConfig

from unreel import door
from unreel.cli import as_job, command


@hydra.main(version_base="1.3", config_path="conf", config_name="evaluate")
@as_job
def main(config: DictConfig) -> Path:
    door.check(config, partial=True)
    door.edits_of(config)
    from unreel.rescoring import rescore  # with torch and diffusers: seconds, which no error above waits for

    return rescore(config)


if __name__ == "__main__":
    command(main)
