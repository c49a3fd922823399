"""Attacks: what every one promises, over every YAML and every tiny model; and what each card says of its own."""

import inspect
import json
from contextlib import nullcontext
from dataclasses import replace
from functools import cache
from itertools import pairwise

import numpy as np
import pytest
import torch
from omegaconf import OmegaConf

from conftest import configured
from test_contracts import CONF, over, yamls
from test_models import FAMILIES
from test_shots import VOCABULARY
from unreel.attacking import resurgence
from unreel.attacks.attack import Attack, Found, Target
from unreel.attacks.tokens import TokenAttack, simplex, straight_through
from unreel.attacks.words import attacked
from unreel.cache import TensorCache
from unreel.captions import TrainingCaptions
from unreel.concepts import to_concept
from unreel.door import built, questions_of
from unreel.edits import Edit, hashes_of
from unreel.hashes import parameter_hashes
from unreel.methods.keywords import name_of, said_with
from unreel.methods.slots import learned, slots_of, table_of, words_of
from unreel.models.animatediff import AnimateDiff
from unreel.models.stable_diffusion import StableDiffusion
from unreel.records import ATTACK, Prompt
from unreel.rendering import Renderer
from unreel.vocabulary import Surroundings

DRUM = to_concept("drum", {"name": "drum", "kind": "object", "neighbours": ["a cat", "a dog"]})
FEW = {
    "steps": 2, "population": 4, "pictures": 2, "batch": 2, "probes": 1, "length": 3, "tokens": 2, "pairs": 2,
    "looks_at": (0, 1), "each": 1, "lr": 0.05,
}  # fmt: skip
PROMPTS = [
    Prompt("a drum on the beach", "forget", (("subject", "a drum"), ("scene", "on the beach")), "drum", "subject"),
    Prompt("the drum at night", "forget", (("subject", "the drum"), ("scene", "at night")), "drum", "subject"),
]


def small_attack(name, **changes) -> Attack:
    """An attack of conf/attack as it is configured, with a few small steps."""
    attack = built(OmegaConf.load(CONF / "attack" / f"{name}.yaml")[name])
    few = {key: value for key, value in FEW.items() if hasattr(attack, key)} | changes
    few |= {"tokens": attack.tokens} if name.startswith("cce") else {}
    return replace(attack, **few)


def edit_of(model, key="text_encoder") -> Edit:
    """An edit that changes one matrix of a component."""
    role = {"text_encoder": "text_encoder.mlp", "denoiser": "denoiser.cross_attention.kv"}[key]
    name = model.select([role])[0]
    value = dict(model.components[key].named_parameters())[name.split("/")[1]].detach() * -2
    return Edit({name: value}, hashes_of(model.components, [key]), "few_shot")


def target_of(model, folder, edit=None, prompts=PROMPTS, concept=DRUM) -> Target:
    captions = TrainingCaptions(concept, Surroundings(VOCABULARY, [concept], False))
    original = model.reference(edit.components) if edit else model
    return Target(model, original, captions, prompts, [1, 2][: len(prompts)], 0, edit is not None, TensorCache(folder))


def hashes(model):
    return {key: parameter_hashes(module) for key, module in model.components.items()}


@cache
def asked(slug):
    """The questions of a shipped concept."""
    return questions_of(configured("train", [f"concept={slug}"]))


@pytest.fixture(params=FAMILIES, ids=lambda family: family.__name__)
def tiny(request):
    return request.param.tiny()


@over("attack")
def test_an_attack_says_where_it_comes_from_and_is_named_as_its_file(path):
    assert list(OmegaConf.load(path)) == [path.stem]
    attack = small_attack(path.stem)
    assert attack.name == path.stem and isinstance(attack, Attack)
    levels = [c for c in type(attack).__mro__ if issubclass(c, Attack)]
    docs = inspect.getdoc(inspect.getmodule(type(attack)))
    assert len(levels) <= 3 and "Reference:" in docs and "Departures:" in docs


@over("attack")
def test_a_search_leaves_no_trace_and_finds_the_same_again(path, tiny, tmp_path):
    """On every family, with an edit of the text encoder and on the unedited model."""
    attack, before = small_attack(path.stem), hashes(tiny)
    attack.check_model(tiny)
    for edit in (None, edit_of(tiny)):
        target = target_of(tiny, tmp_path, edit)
        if edit is None and type(tiny) is not StableDiffusion:
            continue  # one family is its own control
        with edit.applied(tiny) if edit else nullcontext():
            inside = hashes(tiny)
            found = attack.search(target)
            again = attack.search(target) if type(tiny) is StableDiffusion else found
            assert hashes(tiny) == inside, "the search left a trace"
            assert not any(p.requires_grad for module in tiny.components.values() for p in module.parameters())
            assert list(found.texts) == list(again.texts) and found.facts == again.facts
            assert found.tensors.keys() == again.tensors.keys() and len(found.texts) == len(found.of) > 0
            assert all(torch.equal(value, again.tensors[name]) for name, value in found.tensors.items())
            renderer = Renderer(tiny, TensorCache(tmp_path / "all"), TensorCache(tmp_path / "own"), 2)
            prompts = attacked(PROMPTS, found.of, found.texts, f"{ATTACK}{attack.name}")
            with attack.at_work(tiny, found, attack.looks(found)[-1]) as given:
                assert given is None or given.count == len(found.texts)
                rendered = renderer.render(prompts[:1], [0], "after", edit, given and given.rows([0]))
            assert hashes(tiny) == inside, "the attack left a trace"
            assert torch.isfinite(rendered.clips[0]).all()
        found.save(tmp_path / "found.safetensors", "key")
        loaded = Found.load(tmp_path / "found.safetensors", "key")
        assert loaded.texts == list(found.texts) and loaded.facts == json.loads(json.dumps(dict(found.facts)))
        assert all(torch.equal(value, found.tensors[name]) for name, value in loaded.tensors.items())
        assert Found.load(tmp_path / "found.safetensors", "another") is None
    assert hashes(tiny) == before


def test_a_damaged_find_is_searched_again(tmp_path):
    Found(["a"], [0], {"row": torch.ones(2)}).save(tmp_path / "found.safetensors", "key")
    data = bytearray((tmp_path / "found.safetensors").read_bytes())
    data[-3] ^= 1
    (tmp_path / "found.safetensors").write_bytes(data)
    assert Found.load(tmp_path / "found.safetensors", "key") is None
    assert Found.load(tmp_path / "missing.safetensors", "key") is None


def test_what_enters_in_place_of_texts_is_known_by_its_content(tmp_path):
    model = StableDiffusion.tiny()
    renderer = Renderer(model, TensorCache(tmp_path / "all"), TensorCache(tmp_path / "own"), 2)
    given = model.encode_prompt(["a drum", "a cat"])
    other = replace(given, tensors={"prompt_embeds": given["prompt_embeds"] + 1e-6})
    plain = renderer.render(PROMPTS, [1, 2], "before")
    first, second = renderer.render(PROMPTS, [1, 2], "before", given=given), renderer.render(PROMPTS, [1, 2], "before")
    assert second.clips.keys == plain.clips.keys != first.clips.keys
    assert renderer.render(PROMPTS, [1, 2], "before", given=other).clips.keys != first.clips.keys
    texts = [replace(p, text=text) for p, text in zip(PROMPTS, ["a drum", "a cat"], strict=True)]
    same = renderer.render(texts, [1, 2], "before")
    assert torch.allclose(torch.stack(list(same.clips)), torch.stack(list(first.clips)), atol=2 / 255)


def test_the_simplex_is_where_rows_are_shares_and_projecting_twice_is_projecting_once():
    rows = torch.randn((5, 3, 11), generator=torch.Generator().manual_seed(0)) * 3
    found = simplex(rows)
    assert (found >= 0).all() and torch.allclose(found.sum(-1), torch.ones(5, 3), atol=1e-5)
    assert torch.allclose(simplex(found), found, atol=1e-6)
    inside = torch.tensor([[0.2, 0.3, 0.5]])
    assert torch.allclose(simplex(inside), inside), "what is on it stays"


def test_straight_through_is_the_hard_one_forward_and_the_soft_one_backward():
    soft = torch.tensor([0.2, 0.7, 0.1], requires_grad=True)
    hard = torch.tensor([0.0, 1.0, 0.0])
    out = straight_through(soft, hard)
    assert torch.equal(out, hard)
    (out * torch.tensor([1.0, 2.0, 3.0])).sum().backward()
    assert torch.equal(soft.grad, torch.tensor([1.0, 2.0, 3.0]))


@pytest.mark.parametrize("name", [p.stem for p in yamls("attack") if isinstance(small_attack(p.stem), TokenAttack)])
def test_searched_tokens_are_rows_of_the_vocabulary_and_words_that_are_read_back_as_such(name, tmp_path):
    model, attack = StableDiffusion.tiny(), small_attack(name)
    words = words_of(model)
    table = table_of(model)[list(words.values())]
    free = attack.start(table, 2, torch.Generator().manual_seed(0))
    free = (free + 0.01 * torch.randn(free.shape, generator=torch.Generator().manual_seed(1))).requires_grad_(True)
    rows = attack.rows(free, table)
    assert torch.equal(rows, table[attack.ids(free.detach(), table)]), "the forward pass is not that of whole words"
    rows.square().sum().backward()
    assert free.grad.abs().sum() > 0
    found = attack.search(target_of(model, tmp_path))
    tokenizer = model.pipeline.tokenizer
    for text, prompt in zip(found.texts, PROMPTS, strict=True):
        read = tokenizer(text, add_special_tokens=False).input_ids
        own = tokenizer(prompt.text, add_special_tokens=False).input_ids
        searched = [i for i in read if i in words.values()]
        assert len(searched) >= attack.tokens and len(read) in (attack.tokens, attack.tokens + len(own))


@pytest.mark.parametrize("name", ["unlearn_diff_atk", "p4d"])
def test_the_loss_of_a_white_box_falls_on_an_unedited_model(name, tmp_path):
    model = StableDiffusion.tiny()
    found = small_attack(name, steps=20, probes=2).search(target_of(model, tmp_path))
    assert all(best <= first for first, best in found.facts["first_and_best_loss"])
    assert any(best < first for first, best in found.facts["first_and_best_loss"])


def test_the_best_of_ring_a_bell_never_gets_worse(tmp_path):
    model, attack = StableDiffusion.tiny(), small_attack("ring_a_bell", population=8)
    attack = replace(attack, steps=12)
    goal = model.encode_prompt(["a drum"])["prompt_embeds"][0].detach()
    _, history = attack._evolved(model, list(words_of(model)), goal, np.random.default_rng(0))
    assert len(history) == 13 and all(a <= b for a, b in pairwise(history))
    assert history[-1] > history[0]


def test_ring_a_bell_asks_the_unedited_encoder_alone(tmp_path):
    """A black box: the same words, whatever was edited."""
    model, attack = StableDiffusion.tiny(), small_attack("ring_a_bell")
    plain, edit = attack.search(target_of(model, tmp_path)), edit_of(model)
    target = target_of(model, tmp_path, edit)
    with edit.applied(model):
        assert attack.search(target).texts == plain.texts
    assert not attack.knows_edit


def test_cce_learns_one_row_and_nothing_else_changes(tmp_path):
    model = StableDiffusion.tiny()
    before = hashes(model)
    found = small_attack("cce", steps=40, batch=4, lr=0.05).search(target_of(model, tmp_path))
    assert found.tensors.keys() == {"rows"} and found.tensors["rows"].shape == (1, table_of(model).shape[1])
    assert hashes(model) == before and found.facts["last_loss"] < found.facts["first_loss"]
    (slot,) = found.facts["slots"]
    without, with_it = model.encode_prompt(["a cat"]), model.encode_prompt([f"a {slot}"])
    with learned(model, [slot], found.tensors["rows"]):
        assert torch.equal(model.encode_prompt(["a cat"])["prompt_embeds"], without["prompt_embeds"])
        inside = model.encode_prompt([f"a {slot}"])["prompt_embeds"]
    assert not torch.equal(inside, with_it["prompt_embeds"])
    assert torch.equal(model.encode_prompt([f"a {slot}"])["prompt_embeds"], with_it["prompt_embeds"])
    index = model.pipeline.tokenizer(slot, add_special_tokens=False).input_ids[0]
    with learned(model, [slot], table_of(model)[index][None]):  # its own embedding: nothing changes
        assert torch.equal(model.encode_prompt([f"a {slot}"])["prompt_embeds"], with_it["prompt_embeds"])


def test_cce_behind_enters_behind_the_encoder_and_no_edit_of_that_reaches_it(tmp_path):
    model, attack = StableDiffusion.tiny(), small_attack("cce_behind")
    found = attack.search(target_of(model, tmp_path))
    assert found.texts == ["something on the beach", "something at night"]
    with attack.at_work(model, found, 0) as given:
        moved = given["prompt_embeds"] - model.encode_prompt(list(found.texts))["prompt_embeds"]
    assert torch.allclose(moved[:, 1:], found.tensors["rows"].expand_as(moved[:, 1:]), atol=1e-5)
    assert not moved[:, 0].any()


def test_slots_are_words_that_no_prompt_says():
    model = StableDiffusion.tiny()
    slots = slots_of(model, 3, ["a cat on the beach"])
    assert len(set(slots)) == 3 and not {"a", "cat", "on", "the", "beach"} & set(slots)
    with pytest.raises(ValueError, match="words that no prompt says: expected 100000"):
        slots_of(model, 100_000, [])


@pytest.mark.parametrize("name", ["relearn_encoder", "relearn_denoiser", "relearn_both"])
@pytest.mark.parametrize("rank", [None, 2])
def test_fine_tuning_changes_what_it_says_and_nothing_at_step_0(name, rank, tmp_path):
    model, attack = StableDiffusion.tiny(), small_attack(name, rank=rank)
    edit, before = edit_of(model), hashes(model)
    target = target_of(model, tmp_path, edit)
    with edit.applied(model):
        found, inside = attack.search(target), hashes(model)
        assert attack.looks(found) == [0, 1, 2]
        for look in attack.looks(found):
            with attack.at_work(model, found, look):
                differ = {key for key, own in hashes(model).items() if own != inside[key]}
            assert differ == (set(attack.trains) if look else set())
        assert attack.looks(attack.search(replace(target, edited=False))) == [2], "the control is looked at once"
    assert hashes(model) == before


def test_resurgence_is_0_of_what_did_not_come_back_1_of_all_and_undefined_where_nothing_was_forgotten():
    assert resurgence(0.9, 0.1, 0.1) == 0 and resurgence(0.9, 0.1, 0.9) == 1
    assert resurgence(0.5, 0.5, 0.7) is None and resurgence(0.1, 0.2, 0.7) is None


@pytest.mark.parametrize("captions", ["near", "far", "unrelated"])
@pytest.mark.parametrize("slug", ["van_gogh", "drum", "greta_holm", "wispo", "bat_animal", "jumping"])
def test_a_benign_set_never_says_the_concept(slug, captions, tmp_path):
    questions = asked(slug)
    (concept,) = questions.concepts
    own = TrainingCaptions(concept, questions.surroundings, [p.text for p in questions.prompts])
    target = replace(target_of(None, tmp_path), captions=own)
    attack = small_attack("relearn_encoder", captions=captions, pictures=40)
    said = attack.benign(target)
    assert len(said) == 40 and not any(phrase in text for text in said for phrase in concept.phrases)
    assert not {p.text for p in questions.prompts} & set(said)
    near = any(phrase in text for text in said for phrase in concept.neighbours)
    assert near == (captions == "near")


def test_a_fine_tuning_set_that_says_the_concept_is_refused(tmp_path):
    (tmp_path / "mine.txt").write_text("a cat at night\nmy old drum\n")
    attack = small_attack("relearn_encoder", path=str(tmp_path / "mine.txt"))
    with pytest.raises(ValueError, match=r"mine.txt, line 2: found 'drum' in a caption.*expected none that says drum"):
        attack.check([DRUM], PROMPTS)
    (tmp_path / "mine.txt").write_text("a cat at night\n")
    attack = small_attack("relearn_encoder", path=str(tmp_path / "mine.txt"))
    attack.check([DRUM], PROMPTS)
    assert attack.benign(target_of(None, tmp_path)) == ["a cat at night"] * 2


@pytest.mark.parametrize("slug", ["van_gogh", "drum", "greta_holm", "wispo", "bat_animal", "jumping"])
def test_paraphrases_are_said_by_no_grammar_and_long_ones_are_long_and_read_to_their_name(slug):
    questions = asked(slug)
    (concept,) = questions.concepts
    captions = TrainingCaptions(concept, questions.surroundings, [p.text for p in questions.prompts])
    rng = np.random.default_rng(0)
    said = {text for _ in range(300) for text in captions.pair(rng)} | {p.text for p in questions.prompts}
    tokenizer = StableDiffusion.tiny().pipeline.tokenizer
    attack = small_attack("paraphrase")
    for prompt in (p for p in questions.prompts if p.split == "forget"):
        ways = attack.ways(prompt.text, concept)
        assert len(set(ways)) >= 12 and not set(ways) & said
        for text in small_attack("paraphrase", kinds=["long"]).ways(prompt.text, concept):
            read = tokenizer.decode(tokenizer(text, truncation=True, max_length=64).input_ids)
            assert len(text.split()) >= 40 and name_of(concept) in read


def test_names_are_what_all_phrases_share():
    van_gogh = to_concept("van_gogh", {"name": "van gogh", "kind": "style"})
    bat = to_concept("bat", {"kind": "object", "phrases": ["a bat with furry wings", "a wild bat", "a bat, at night"]})
    owl = to_concept("owl", {"kind": "object", "phrases": ["a white owl"]})
    assert [name_of(c) for c in (DRUM, van_gogh, bat, owl)] == ["drum", "van gogh", "bat", "white owl"]
    assert said_with("a cat in the style of Van Gogh", van_gogh, "x") == "a cat x"
    assert said_with("starry night", van_gogh, "x") == "starry night x"
    assert said_with("it rains", DRUM, "x") == "x it rains"


@pytest.mark.parametrize(
    ("name", "text", "says"),
    [
        ("mine.txt", "a noisy drum\na cat that is no percussion\n", "line 2: found 'a cat' in a paraphrase of drum"),
        ("mine.csv", "prompt,concept\ntam-tam,drum\nsunflowers,van_gogh\n", "line 3: found the concept 'van_gogh'"),
        ("mine.csv", "prompt,split\ntam-tam,retain\n", "found split retain: expected paraphrases of drum"),
    ],
)
def test_a_file_of_paraphrases_speaks_of_the_concept_alone(tmp_path, name, text, says):
    (tmp_path / name).write_text(text)
    attack = small_attack("paraphrase", path=str(tmp_path / name))
    with pytest.raises(ValueError, match=says):
        attack.check([DRUM], PROMPTS)


def test_paraphrases_of_a_file_take_turns_with_the_prompts(tmp_path):
    (tmp_path / "mine.txt").write_text("tam-tam\nbongo\nconga\n")
    attack = small_attack("paraphrase", path=str(tmp_path / "mine.txt"))
    attack.check([DRUM], PROMPTS)
    found = attack.search(target_of(None, tmp_path))
    assert found.texts == ["tam-tam", "bongo", "conga"] and found.of == [0, 1, 0]
    assert attack.content != small_attack("paraphrase").content


@over("attack")
def test_an_attack_that_learns_a_look_refuses_a_motion_where_one_picture_is_all_there_is(path):
    attack, model, spinning = small_attack(path.stem), StableDiffusion.tiny(), asked("spinning").concepts[0]
    attack.check_looks(model, [DRUM])
    if attack.learns_looks:
        with pytest.raises(ValueError, match=f"{path.stem} learns from pictures .* found spinning, a motion"):
            attack.check_looks(model, [DRUM, spinning])
    else:
        attack.check_looks(model, [spinning])
    attack.check_looks(AnimateDiff.tiny(), [spinning])


@over("attack")
@pytest.mark.parametrize("attached", [False, True])
def test_an_attack_on_weights_refuses_erasers_that_change_none(path, attached):
    attack = small_attack(path.stem)
    if attached and not attack.passes_guidance:
        with pytest.raises(ValueError, match=f"attack {path.stem} searches in the weights .* safree changes none"):
            attack.check_eraser("safree", attached)
    else:
        attack.check_eraser("safree", attached)


def test_ring_a_bell_mutates_as_often_as_it_is_told():
    candidates = np.tile(np.arange(16), (400, 1)) * 0  # all alike, so that mixing changes nothing
    for chance in (0.0, 0.25, 1.0):
        attack = small_attack("ring_a_bell", mutation=chance, length=16)
        children = attack._children(candidates, 10_000, np.random.default_rng(0))
        assert abs((children != 0).any(1).mean() - chance) < 0.07
