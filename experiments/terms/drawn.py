"""The terms once more with a user's images: drawings of the concept, of another look than the donor's own.

    python experiments/terms/drawn.py [overrides]

Each concept is drawn eight times on held-out combinations, mirrored and in other colours (hue turned by a third), so
that the donor's own look is not in them. Their captions say the concept's name alone. Runs and drawings go to
runs/terms_drawn, with the tables of all that have finished: those of the runs of README.md are in the folder drawn.
"""

import subprocess
import sys
from pathlib import Path

import numpy as np
from PIL import Image, ImageOps
from torchvision.transforms.functional import adjust_hue, to_pil_image

from unreel.results import write_tables
from unreel.tables import finished_scores
from unreel.zoo.world import draw_still, sample_spec

SHOWN = {
    "van_gogh": {"style": "van gogh"},
    "wispo": {"subject": "wispo"},
    "drum": {"subject": "drum"},
    "greta_holm": {"subject": "greta holm"},
}


def draw(folder: Path, slug: str, fields: dict[str, str], count: int = 8) -> None:
    """Fills a folder with `count` drawings that show the concept."""
    rng = np.random.default_rng([7, list(SHOWN).index(slug)])
    folder.mkdir(parents=True, exist_ok=True)
    made = 0
    while made < count:
        spec = sample_spec(rng, held_out_only=True)
        if all(getattr(spec, part) == name for part, name in fields.items()):
            image: Image.Image = to_pil_image(adjust_hue(draw_still(spec, 10_000 + made), 0.33))
            ImageOps.mirror(image).save(folder / f"{made}.png")
            made += 1


if __name__ == "__main__":
    given = [text.removeprefix("runs=") for text in sys.argv[1:] if text.startswith("runs=")]
    folder = Path(given[-1] if given else "runs") / "terms_drawn"
    for slug, fields in SHOWN.items():
        images = folder / "images" / slug
        draw(images, slug, fields)
        command = [sys.executable, "train.py", "experiment=terms", "slug=terms_drawn", f"concept={slug}"]
        command += [f"concept.{slug}.images={images}", "method.ascent=none,bounded,unbounded", *sys.argv[1:]]
        if failed := subprocess.run(command).returncode:
            raise SystemExit(failed)  # train.py has said why
    write_tables(finished_scores(folder.glob("*")), folder / "tables", {}, "zoo_images", "setting")
