"""A training step of a LoRA edit beside an XXL text encoder: real shapes, random weights, no download.

python experiments/cost/lora.py wan_1_3b           # or cogvideox_2b; counted for that one: 15 GB

First what is counted on tensors without values, of the default's step and of the one that is measured, which has few
captions so that a CPU gets through it; then seconds and memory of that one.
"""

import argparse
import json
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

sys.path.insert(0, str(Path(__file__).parent))
from benchmark import CONF, DEVICE, compose, initialize_config_dir, peak_bytes, timed
from counted import Training, built_model, operations, peak, shapes_only

from unreel.door import built

FEW = {"batch": 1, "pairs": 3, "retain": 6}


def training(name: str, few: bool) -> Training:
    """The default method with `parameters=lora`, in bfloat16 but for the factors, with checkpointing."""
    with initialize_config_dir(str(CONF), version_base="1.3"):
        config = compose("train", ["concept=van_gogh", "t2i=wan", "parameters=lora"])
    method = built(config.method)
    if few:
        method = replace(method, data=replace(method.data, **FEW))
    model = built_model(name, "bfloat16", checkpointing=True)
    return Training(method, model, list(config.parameters.roles), built(config.parameters.lora))


def counted(name: str, few: bool) -> dict[str, Any]:
    """Operations of a step, and the most bytes that are alive in the second one, which has Adam's state."""
    with shapes_only():
        one = training(name, few)
        found = {"captions": len(one.batch.forget) + len(one.batch.retain), "flops": operations(one.step)}
        encoder = sum(p.nbytes for p in one.model.components["text_encoder"].parameters())
        factors = sum(p.nbytes for p in one.trained)
        return found | {"bytes": peak(one.step, one.tensors), "encoder": encoder - factors, "edit": factors}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("model", choices=["wan_1_3b", "cogvideox_2b"])
    parser.add_argument("--count", action="store_true", help="measure nothing")
    given = parser.parse_args()
    for few in (False, True):
        try:
            print("counted", json.dumps(counted(given.model, few)), flush=True)
        except RuntimeError as error:  # Wan's pipeline cuts embeddings to their texts, which takes values
            print(f"not counted: {error}")
    if given.count:
        return
    torch.manual_seed(0)
    with torch.device(DEVICE):
        real = training(given.model, few=True)
        found: dict[str, float] = {"captions": len(real.batch.forget) + len(real.batch.retain)}
        found["seconds"] = timed(lambda: found.update(flops=operations(real.step)), 1)
    print("measured", json.dumps(found | {"bytes": peak_bytes()}))


if __name__ == "__main__":
    main()
