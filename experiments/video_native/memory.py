"""How much memory the training of each eraser takes beside the loaded models, each in a process of its own.

    python experiments/video_native/memory.py     # -> memory.jsonl; Linux, three minutes on two cores

The peak of resident memory within the phase "training" over what was resident when it began.
"""

import json
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from unittest.mock import patch

from erasers import HERE, NAMES

from unreel.files import write_text

ROOT = HERE.parents[1]


def resident(field: str) -> float:
    """VmRSS or VmHWM, the largest since it was reset, in GB."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(field)) / 1e6


def measure(t2i: str, method: str) -> None:
    """Prints a row of memory.jsonl, of one run on the concept wispo."""
    sys.path.insert(0, str(ROOT))
    import train
    from hydra import compose, initialize_config_dir

    from unreel.runs import Run

    timed, found = Run.timed, {"t2i": t2i, "method": method, "training_gb": 0.0}

    @contextmanager
    def watched(self: Run, name: str) -> Iterator:
        with timed(self, name) as phase:
            if name == "training":
                Path("/proc/self/clear_refs").write_text("5")  # resets VmHWM
                before = resident("VmRSS")
            yield phase
            if name == "training":
                found["training_gb"] = round(resident("VmHWM") - before, 3)

    conf = initialize_config_dir(str(ROOT / "conf"), version_base="1.3")
    with patch.object(Run, "timed", watched), tempfile.TemporaryDirectory() as runs, conf:
        said = ["t2v=[zoo_unet3d]", f"t2i={t2i}", f"method={method}", "concept=wispo", f"runs={runs}", "export=[]"]
        train.main(compose("train", ["experiment=video_native", "evaluation.prompts=2", f"output={runs}/run", *said]))
    print(json.dumps(found))


def main() -> None:
    rows = []
    for t2i, method in NAMES:
        done = subprocess.run([sys.executable, __file__, t2i, method], capture_output=True, text=True, cwd=ROOT)
        if done.returncode:
            raise SystemExit(done.stderr[-2000:])
        rows.append(done.stdout.splitlines()[-1])
        print(rows[-1], flush=True)
    write_text(HERE / "memory.jsonl", "".join(f"{row}\n" for row in rows))


if __name__ == "__main__":
    measure(*sys.argv[1:]) if len(sys.argv) == 3 else main()
