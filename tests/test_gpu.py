"""What every method promises on a GPU; without one these tests are skipped."""

from functools import partial

import pytest
import torch

from test_contracts import over, small_method, trainer
from test_shots import make_shots
from unreel.hashes import parameter_hashes
from unreel.libraries import prepare_libraries
from unreel.methods.method import Task
from unreel.models.modelscope import ModelScope
from unreel.models.stable_diffusion import StableDiffusion

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="torch sees no GPU")


@pytest.fixture(autouse=True)
def deterministic():
    prepare_libraries(None)
    yield
    torch.use_deterministic_algorithms(False)


@over("method")
def test_a_method_erases_on_a_gpu_and_leaves_the_model_there_as_it_was(path, tmp_path):
    """Lightning moves to the CPU what it has trained; and the same seed makes the same edit there too, to the bit."""
    method, roles = small_method(path.stem)
    tiny = (ModelScope if "clips" in method.needs else StableDiffusion).tiny()
    model = type(tiny).of(tiny.pipeline.to("cuda"), **{**tiny.options, "name": tiny.name})
    shots = make_shots(tmp_path, shots=2)
    if "shots" in method.needs:
        shots.make(model)
    before = {key: parameter_hashes(module) for key, module in model.components.items()}
    task = Task(shots.captions, roles, 0, shots, partial(trainer, accelerator="gpu"))
    edit = method.erase(model, task)
    assert method.erase(model, task).hash == edit.hash
    assert {p.device.type for module in model.components.values() for p in module.parameters()} == {"cuda"}
    assert {key: parameter_hashes(module) for key, module in model.components.items()} == before
    assert all(tensor.isfinite().all() and tensor.device.type == "cpu" for tensor in edit.tensors.values())
    clips, again = (model.render(["a drum"], [0]) for _ in range(2))
    with edit.applied(model):
        changed = model.render(["a drum"], [0])
    assert torch.equal(again, clips) and (not torch.equal(changed, clips) or not edit.tensors)
