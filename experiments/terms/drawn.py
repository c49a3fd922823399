"""The terms once more with a user's images: drawings of the concept, of another look than the donor's own.

    python experiments/terms/drawn.py [overrides]

Each concept is drawn eight times on held-out combinations, mirrored and in other colours (hue turned by a third), so
that the donor's own look is not in them. Their captions say the concept's name alone. Runs go to runs/terms_drawn.
"""

import subprocess
import sys
from pathlib import Path

import numpy as np
from PIL import Image, ImageOps
from torchvision.transforms.functional import adjust_hue, to_pil_image

from unreel.zoo.world import draw_still, sample_spec

SHOWN = {
    "van_gogh": {"style": "van gogh"},
    "wispo": {"subject": "wispo"},
    "drum": {"subject": "drum"},
    "greta_holm": {"subject": "greta holm"},
}
FOLDER = Path("runs/terms_drawn/images")


def draw(slug: str, fields: dict[str, str], count: int = 8) -> Path:
    """A folder of `count` drawings that show the concept."""
    rng, folder = np.random.default_rng([7, list(SHOWN).index(slug)]), FOLDER / slug
    folder.mkdir(parents=True, exist_ok=True)
    made = 0
    while made < count:
        spec = sample_spec(rng, held_out_only=True)
        if all(getattr(spec, part) == name for part, name in fields.items()):
            image: Image.Image = to_pil_image(adjust_hue(draw_still(spec, 10_000 + made), 0.33))
            ImageOps.mirror(image).save(folder / f"{made}.png")
            made += 1
    return folder


if __name__ == "__main__":
    for slug, fields in SHOWN.items():
        images = draw(slug, fields)
        command = [sys.executable, "train.py", "experiment=terms", "slug=terms_drawn", f"concept={slug}"]
        command += [f"concept.{slug}.images={images}", "method.ascent=none,bounded,unbounded", *sys.argv[1:]]
        subprocess.run(command, check=True)
