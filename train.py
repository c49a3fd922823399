"""unreel: concept -> shots -> method -> edit -> clips -> scores -> report.

python train.py concept=van_gogh shots=4
python train.py -m concept=glob(*) shots=1,2,4,8 parameters=mlp,attention
"""

from pathlib import Path

import hydra
from omegaconf import DictConfig

from unreel import door
from unreel.cli import as_job, command


@hydra.main(version_base="1.3", config_path="conf", config_name="train")
@as_job
def main(config: DictConfig) -> Path:
    door.check(config)
    questions = door.questions_of(config)
    from unreel.training import train  # with torch and diffusers: seconds, which no error above waits for

    return train(config, questions)


if __name__ == "__main__":
    command(main)
