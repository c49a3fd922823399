"""The adversary of few_shot: who gets whose gradient, that its search finds a way back, and that training closes it."""

from dataclasses import replace

import pytest
import torch

from conftest import small_model
from test_esd import make_task
from test_gradient import ADAM, GUARD
from unreel.batches import Batches, BatchSizes, Step
from unreel.concepts import to_concept
from unreel.methods.adversary import Adversary, Search
from unreel.methods.few_shot import FewShot
from unreel.methods.guard import distance
from unreel.methods.keywords import said_with
from unreel.methods.slots import learned
from unreel.models.stable_diffusion import StableDiffusion

SMALL = dict(words=2, steps=2, lr=1.0, furthest=4.0, restart_every=2, captions=6, weight=1.0)
SIZES = dict(steps=4, epochs=None, batch=2, pairs=4, retain=4)


def make_method(**changes):
    data = BatchSizes(**SIZES)
    return FewShot(
        name="few_shot", ascent="none", adversary=Adversary(**(SMALL | changes)), optimizer=ADAM, data=data, guard=GUARD
    )


def search_of(model, names=("drum",), **changes):
    task = make_task(["all"], names=names)
    batches = Batches(model, task.captions, None, BatchSizes(**SIZES), 0)
    search = Search(Adversary(**(SMALL | changes)), model, task.concepts, [], 0)
    return search, lambda number=0: Step(model, model.reference(["text_encoder"]), batches.batch(number))


def test_the_search_brings_captions_nearer_to_the_concept_and_gives_the_encoder_no_gradient():
    model = small_model(layers=2)
    encoder = model.components["text_encoder"].requires_grad_(True)
    near = {}
    for steps in (1, 40):
        search, step = search_of(model, steps=steps, lr=0.3)
        begun = search.rows.detach().clone()
        search.loss(step(), 0.0)
        assert not torch.equal(search.rows, begun)
        assert all(p.grad is None for p in encoder.parameters())
        texts = step().batch.forget
        said, places = search._said(texts)
        with torch.no_grad(), learned(model, search.slot, search.rows[places][:, None]):
            near[steps] = float(distance(model.encode_prompt(said), model.encode_prompt(texts)))
    assert near[40] < 0.7 * near[1]


def test_its_loss_trains_the_encoder_and_not_the_words():
    model = small_model(layers=2)
    encoder = model.components["text_encoder"].requires_grad_(True)
    search, step = search_of(model)
    loss, found = search.loss(step(), 0.0), search.rows.detach().clone()
    search.free.grad = None
    loss.backward()
    assert any(p.grad is not None and p.grad.abs().sum() > 0 for p in encoder.parameters())
    assert search.free.grad is None and torch.equal(search.rows, found)


def test_the_slot_is_in_the_names_place_and_each_concept_has_words_of_its_own():
    search, _ = search_of(small_model(layers=2), names=("drum", "cat"))
    (slot,) = search.slot
    said, places = search._said(["a Drum at night", "a cat", "a photo of a drum, drawn", "two drums"])
    assert said[:3] == [f"{slot} at night", slot, f"a photo of {slot}, drawn"]
    assert places[:3] == [0, 2, 1] and len(search.rows) == 4


def test_words_begin_near_the_name_or_anywhere_and_as_far_as_asked():
    search, _ = search_of(small_model(layers=2), words=64, furthest=9.0)
    lengths = search.rows.detach().norm(dim=1)
    near, far = lengths[::2] / search.names[0].norm(), lengths[1::2]
    assert near.max() > 3 and near.min() < 2 and near.max() < 9 * 1.5
    assert far.max() / far.min() > 3


def test_one_word_of_each_concept_begins_anew_in_its_turn():
    search, step = search_of(small_model(layers=2), words=3, restart_every=1, lr=1e-6)
    for number in range(4):
        before = search.rows.detach().clone()
        search.loss(step(number), 0.0)
        moved = ((search.rows - before).abs().amax(1) > 1e-3).nonzero().flatten().tolist()
        assert moved == ([] if number == 0 else [number - 1])


def test_weight_nothing_is_the_method_without_an_adversary():
    def edit(**changes):
        method = make_method(weight=0.0)
        method = replace(method, **changes)
        return method.erase(small_model(layers=2), make_task(["all"]))

    assert edit().hash == edit(adversary=None).hash != edit(adversary=Adversary(**SMALL)).hash


def test_a_model_without_a_table_of_tokens_is_refused_before_any_work():
    model = StableDiffusion.tiny()
    model.pipeline.tokenizer = None
    with pytest.raises(ValueError, match=r"method.adversary of few_shot learns tokens: .* has no text encoder"):
        make_method().check(model, ["all"])


@pytest.mark.parametrize("wrong", [{"words": 0}, {"steps": 0}, {"lr": 0.0}, {"furthest": 0.5}, {"weight": -1.0}])
def test_numbers_that_will_not_do_are_refused(wrong):
    with pytest.raises(ValueError, match=next(iter(wrong))):
        Adversary(**(SMALL | wrong))


def test_every_word_of_each_concept_has_its_turn():
    search, step = search_of(small_model(layers=2), names=("drum", "cat"), words=4, captions=4, steps=1)
    used = set()
    for number in range(2):
        used |= set(search._said(["a drum", "a cat", "a drum at night", "a cat at night"])[1])
        search.loss(step(number), 0.0)
    assert used == set(range(8))


def test_a_name_that_is_said_twice_is_replaced_twice():
    painter = to_concept("van_gogh", {"kind": "style", "name": "van gogh"})
    text = "Starry Night by Van Gogh, painted by van gogh, van goghs"
    assert said_with(text, painter, "") == "Starry Night by , , van goghs"
    assert said_with("a van gogh sunflower in the style of van gogh", painter, "x") == "a x sunflower x"
    assert said_with("a sunflower", painter, "x") == "a sunflower x"
