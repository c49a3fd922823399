"""The page to try edits: what it offers and refuses, and the page itself in a real browser, with an edit of the zoo."""

import importlib.util
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from dataclasses import replace
from urllib.parse import urlsplit

import pytest
import torch
from omegaconf import OmegaConf

from conftest import ROOT, configured
from unreel import assembly, demo
from unreel.clips import to_uint8
from unreel.edits import Edit
from unreel.offers import offer_of, offers_in
from unreel.pairs import MOST_CHARACTERS, MOST_SEED, Pairs, examples_of

RECIPIENTS = "t2v=[zoo_images,zoo_animatediff]"
HOSTILE = "<img src=x onerror=document.title=1>"
CAT, DOG = "a cat on the beach", "a dog in the snow"


def zoo_edit(*overrides):
    """An edit of the zoo's text encoder that changes what is drawn, saying of itself what an edit of a run says."""
    config = configured("train", [RECIPIENTS, *overrides])
    donor = assembly.donor_of(config, "cpu")
    edited = donor.reference(["text_encoder"])
    weight = edited.components["text_encoder"].final_layer_norm.weight
    weight.data *= torch.linspace(-1, 1, len(weight))
    said = {"config": OmegaConf.to_container(config, resolve=True), "facts": {"steps": 1, "most_steps": 1}}
    return replace(Edit.between(donor, edited, ["text_encoder"], "few_shot"), provenance=said)


def write_run(folder, edit, status="done", age_s=0.0):
    edit.save(folder / "edit.safetensors")
    (folder / "status.json").write_text(json.dumps({"status": status}))
    os.utime(folder / "status.json", (time.time() - age_s,) * 2)
    return folder / "edit.safetensors"


@pytest.fixture(scope="module")
def edit():
    return zoo_edit("concept=cat")


@pytest.fixture(scope="module")
def runs(edit, tmp_path_factory):
    """Two finished runs, one that was killed, and one that is damaged."""
    runs = tmp_path_factory.mktemp("demo") / "runs"
    write_run(runs / "train" / "cat", edit)
    write_run(runs / "hostile", zoo_edit(f"phrase='{HOSTILE}'", "kind=object", "seed=3"), age_s=60)
    write_run(runs / "train" / "killed", edit, "stopped")
    write_run(runs / "train" / "damaged", edit).write_bytes(b"no edit")
    return runs


def test_finished_runs_are_offered_newest_first_and_say_what_they_are(runs):
    offers, damaged = offers_in(runs)
    assert [offer.path.parent.name for offer in offers] == ["cat", "hostile"]
    expected = "cat (object) · few_shot, 4 shots, mlp_final_attention · zoo_images, zoo_animatediff · seed 0"
    assert offers[0].label == expected and offers[0].recipients == ["zoo_images", "zoo_animatediff"]
    assert offers[1].label.startswith(f"{HOSTILE} (object)") and offers[1].label.endswith("seed 3")
    assert len(damaged) == 1 and "train/damaged" in damaged[0]


def test_an_edit_gives_prompts_that_ask_for_the_concept_and_others_that_must_stay(runs):
    forget, retain = examples_of(runs / "train" / "cat" / "edit.safetensors", configured("evaluate", []), 3)
    assert len(forget) == len(retain) == 3
    assert all("cat" in text for text in forget) and not any("cat" in text for text in retain)


@pytest.mark.parametrize(
    ("given", "says"),
    [
        (["port=0"], "found port=0"),
        (["edit=/nowhere/edit.safetensors"], "is missing"),
        (["t2v=[zoo_images]", "t2v.zoo_images.num_inference_steps=0"], "num_inference_steps"),
        (["device=tpu"], "found device=tpu"),
    ],
)
def test_settings_that_will_not_do_are_refused_at_the_start(given, says):
    with pytest.raises(ValueError, match=says):
        demo.check(configured("demo", given))


def test_a_port_that_is_taken_and_a_missing_gradio_are_told(monkeypatch):
    monkeypatch.setitem(sys.modules, "gradio", None)
    with pytest.raises(ValueError, match=r'gradio is missing: pip install -e "\.\[demo\]"'):
        demo.check(configured("demo", []))
    monkeypatch.setattr(importlib.util, "find_spec", lambda _: "there")
    with socket.create_server((demo.HOST, 0)) as taken:
        port = taken.getsockname()[1]
        with pytest.raises(ValueError, match=f"found port={port}: Address already in use"):
            demo.check(configured("demo", [f"port={port}"]))
    demo.check(configured("demo", [f"port={port}"]))


@pytest.fixture(scope="module")
def needs_gradio():
    if importlib.util.find_spec("gradio") is None:
        pytest.skip('needs pip install -e ".[demo]"')


def test_without_a_finished_run_the_command_ends_with_a_line_that_says_how_to_make_one(needs_gradio, tmp_path):
    command = [sys.executable, "-m", "unreel.demo", f"runs={tmp_path}"]
    done = subprocess.run(command, capture_output=True, text=True, check=False, cwd=ROOT)
    (line,) = done.stderr.splitlines()
    assert done.returncode == 1 and line.startswith(f"unreel: {tmp_path} has no finished run") and "make run" in line


@pytest.fixture(scope="module")
def pairs(tmp_path_factory):
    return Pairs(configured("demo", ["t2v=[zoo_images]"]).t2v, "cpu", tmp_path_factory.mktemp("clips"))


def other(edit):
    return replace(edit, base=dict.fromkeys(edit.base, "0" * 64))


@pytest.mark.parametrize(
    ("asked", "says"),
    [
        ({"prompt": " \n"}, "found no prompt"),
        ({"prompt": "x" * (MOST_CHARACTERS + 1)}, "found a prompt of 2,001 characters: expected at most 2,000"),
        ({"prompt": "cat " * 100}, "found a prompt of 102 tokens: expected at most 64, which are read"),
        ({"seed": -1}, "found the seed -1"),
        ({"seed": MOST_SEED + 1}, "expected a whole number, 0 to 2147483647"),
        ({"seed": None}, "found the seed None"),
        ({"names": []}, "found no recipient"),
        ({"names": ["../../etc"]}, "found the recipient '../../etc': expected some of zoo_images"),
    ],
)
def test_what_is_asked_is_checked_before_anything_is_rendered(runs, pairs, asked, says):
    given = {"path": runs / "train" / "cat" / "edit.safetensors", "names": ["zoo_images"], "prompt": CAT, "seed": 0}
    assert list(pairs.edits(**given)) == ["zoo_images"]
    with pytest.raises(ValueError, match=says.replace("../../", r"\.\./\.\./")):
        pairs.edits(**given | asked)


def test_an_edit_of_other_weights_or_a_damaged_one_is_refused(edit, pairs, tmp_path):
    path = write_run(tmp_path / "other", other(edit))
    with pytest.raises(ValueError, match=r"^zoo_images: the edit belongs to other weights: in its text encoder 68 of"):
        pairs.edits(path, ["zoo_images"], CAT, 0)
    path.write_bytes(path.read_bytes()[:-1] + b"\0" + b"\0")
    for read in (lambda: pairs.edits(path, ["zoo_images"], CAT, 0), lambda: offer_of(path)):
        with pytest.raises(ValueError, match=r"edit\.safetensors is damaged"):
            read()


def test_a_recipient_that_is_not_on_this_machine_is_refused(runs, tmp_path):
    (tmp_path / "model_index.json").write_text("{}")
    given = ["t2v=[animatediff]", f"t2v.animatediff.folder={tmp_path}", f"t2v.animatediff.motion_adapter={tmp_path}"]
    pairs = Pairs(configured("demo", given).t2v, "cpu", tmp_path)
    with pytest.raises(ValueError, match=r"^animatediff cannot be loaded .*: expected its whole folder on this"):
        pairs.edits(runs / "train" / "cat" / "edit.safetensors", ["animatediff"], CAT, 0)
    assert [Pairs(configured("demo", [f"t2v=[{name}]"]).t2v, "cpu", tmp_path).is_here(name)
            for name in ("zoo_unet3d", "animatediff", "modelscope")] == [True, False, False]  # fmt: skip


def test_an_edit_of_the_recipients_own_comes_before_the_runs_first_one(edit, pairs, tmp_path):
    path = write_run(tmp_path, other(edit))
    edit.save(tmp_path / "edits" / "zoo_images" / "edit.safetensors")
    assert pairs.edits(path, ["zoo_images"], CAT, 0)["zoo_images"].hash == edit.hash


def test_a_pair_is_what_the_model_renders_and_the_weights_are_as_before(edit, pairs):
    from PIL import Image

    model, heard = pairs.model("zoo_images"), []
    weights = {name: p.clone() for name, p in model.components["text_encoder"].named_parameters()}
    clips = [pairs.clip("zoo_images", given, CAT, 7, heard.append) for given in (None, edit)]
    assert heard == [0.0, *(pytest.approx(i / 10) for i in range(1, 11))] * 2  # of ten steps
    assert all(torch.equal(p, weights[name]) for name, p in model.components["text_encoder"].named_parameters())
    (before,) = model.render([CAT], [7])
    with edit.applied(model):
        (after,) = model.render([CAT], [7])
    for clip, expected in zip(clips, (before, after), strict=True):
        with Image.open(clip.path) as image:
            factor = image.width // expected.shape[-1]
            assert image.width >= 256 and image.reduce(factor).tobytes() == to_uint8(expected)[0].tobytes()
    assert not torch.equal(before, after) and clips[0].seconds > 0
    again = pairs.clip("zoo_images", edit, CAT, 7, heard.append)
    assert again.path == clips[1].path and again.seconds == 0  # it was kept
    assert pairs.clip("zoo_images", None, CAT, 8, heard.append).path != clips[0].path


@pytest.mark.parametrize("alone", [True, False])
def test_one_model_is_in_memory_at_a_time_if_it_has_to_be(alone, edit, runs, tmp_path):
    names = ["zoo_images", "zoo_text2video_zero"]
    pairs = Pairs(configured("demo", [f"t2v=[{','.join(names)}]"]).t2v, "cpu", tmp_path, alone)

    def loaded():
        return [name for name in names if pairs.model(name)._pipeline is not None]

    pairs.edits(runs / "train" / "cat" / "edit.safetensors", names, CAT, 0)
    assert loaded() == (names[1:] if alone else names)
    pairs.clip("zoo_images", edit, CAT, 7, lambda share: None)
    assert loaded() == (names[:1] if alone else names)


def test_a_page_that_closes_ends_what_is_rendered_at_its_next_step(edit, tmp_path):
    pairs = Pairs(configured("demo", ["t2v=[zoo_images]"]).t2v, "cpu", tmp_path)
    told = []

    def told_of(share):
        told.append(share)
        if share >= 0.3:
            pairs.close()

    with pytest.raises(ValueError, match="the page was closed"):
        pairs.clip("zoo_images", edit, CAT, 0, told_of)
    assert len(told) == 4 and not list(tmp_path.iterdir())
    edit.check(pairs.model("zoo_images"))  # which holds the weights that it had


@pytest.fixture(scope="module")
def server(needs_gradio, runs, tmp_path_factory):
    """The command as it is given, on a free port."""
    with socket.create_server((demo.HOST, 0)) as free:
        port = free.getsockname()[1]
    command = [sys.executable, "-m", "unreel.demo", f"runs={runs}", f"port={port}", RECIPIENTS, "threads=1"]
    command += ["t2v.zoo_animatediff.num_inference_steps=4", "device=cpu"]
    temporary = tmp_path_factory.mktemp("temporary")
    process = subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, cwd=ROOT,
        env=os.environ | {"TMPDIR": str(temporary)},
    )  # fmt: skip
    process.temporary = temporary
    process.address = f"http://{demo.HOST}:{port}"
    first = process.stdout.readline()
    assert process.address in first, process.communicate()
    yield process
    process.terminate()
    process.wait(timeout=60)


@pytest.fixture(scope="module")
def browser(server):
    playwright = pytest.importorskip("playwright.sync_api")
    if (chromium := shutil.which("chromium")) is None:
        pytest.skip("needs chromium (Debian's package)")
    with playwright.sync_playwright() as started:
        yield started.chromium.launch(executable_path=chromium, args=["--no-sandbox", "--disable-gpu"])


@pytest.fixture
def opened(browser, server):
    """Opens the page as somebody new, and waits until it shows the first run's prompt."""
    contexts = []

    def page():
        contexts.append(browser.new_context())
        made = contexts[-1].new_page()
        made.set_default_timeout(30_000)
        made.hosts = set()
        made.on("request", lambda request: made.hosts.add(urlsplit(request.url).hostname))
        made.goto(server.address)
        made.wait_for_function("document.querySelector('#prompt textarea')?.value.includes('cat')")
        return made

    yield page
    for context in contexts:
        context.close()


def tick(page, *names):
    for name in ("zoo_images", "zoo_animatediff"):
        page.get_by_label(name).set_checked(name in names)


def ask(page, prompt):
    page.fill("#prompt textarea", prompt)
    page.click("#render")


def message(page, words):
    """The message when it says some words."""
    page.wait_for_selector(f"#message p:has-text('{words}')")
    return page.inner_text("#message p")


def shown(page, name, kind):
    """The files of both clips of a recipient, before and after."""
    return [
        page.request.get(page.locator(f"#place-{name} {kind}").nth(i).get_attribute("src")).body() for i in range(2)
    ]


def test_a_prompt_becomes_two_clips_that_play_side_by_side(opened, pairs, edit, runs):
    page = opened()
    assert page.title() == "unreel" and "cat (object)" in page.input_value("#edit input")
    tick(page, "zoo_images", "zoo_animatediff")
    ask(page, DOG)
    page.wait_for_selector("#message :text('zoo_animatediff, after - ')")  # the bar
    said = message(page, "zoo_animatediff: before")
    assert said.startswith("zoo_images: before") and " s, after " in said
    page.wait_for_function("[...document.querySelectorAll('video')].filter(v => v.currentTime > 0).length == 2")
    boxes = [page.locator("#place-zoo_animatediff video").nth(i).bounding_box() for i in range(2)]
    assert boxes[0]["y"] == boxes[1]["y"] and boxes[0]["x"] + boxes[0]["width"] <= boxes[1]["x"]
    clips = shown(page, "zoo_animatediff", "video")
    assert all(b"ftyp" in clip[:12] for clip in clips) and clips[0] != clips[1]
    expected = [pairs.clip("zoo_images", given, DOG, 0, print).path.read_bytes() for given in (None, edit)]
    assert shown(page, "zoo_images", "img") == expected
    assert page.hosts == {demo.HOST}, "something went to another machine"


def test_what_will_not_do_is_one_line_on_the_page(opened, edit, runs, tmp_path):
    page = opened()
    tick(page, "zoo_images")
    for prompt, says in (("", "found no prompt"), ("cat " * 100, "102 tokens"), ("x" * 2001, "2,001 characters")):
        ask(page, prompt)
        assert "\n" not in message(page, says) and not page.locator("video:visible, .clip img:visible").count()
    page.fill("#seed input", "-1")
    ask(page, CAT)
    message(page, "found the seed -1")
    page.fill("#seed input", "0")

    def open_path(path):
        page.fill("#path :is(input, textarea)", str(path))
        page.press("#path :is(input, textarea)", "Enter")

    open_path("/etc/passwd")
    message(page, "is damaged, or does not say what it erases")
    open_path(write_run(tmp_path / "other", other(edit)))
    message(page, str(tmp_path / "other"))
    ask(page, CAT)
    message(page, "zoo_images: the edit belongs to other weights")
    gone = write_run(tmp_path / "gone", edit)
    open_path(gone)
    message(page, str(gone))
    shutil.rmtree(gone.parent)
    ask(page, CAT)
    message(page, "is missing: expected the edit.safetensors of a run")


def test_names_from_an_edit_are_text_on_the_page(opened):
    page = opened()
    page.click("#edit input")
    page.get_by_role("option", name="onerror").click()
    page.wait_for_function("document.querySelector('#prompt textarea').value.includes('onerror')")
    page.wait_for_selector("button:has-text('onerror')")  # an example
    assert page.title() == "unreel" and not page.locator("img[src=x]").count()


def test_two_people_take_turns_and_each_sees_the_own_result(opened, pairs, edit):
    one, two = opened(), opened()
    tick(one, "zoo_images", "zoo_animatediff")
    tick(two, "zoo_images")
    ask(one, "a cat at night")
    one.wait_for_selector("#message :text('zoo_')")
    ask(two, "an owl at night")
    two.wait_for_selector("#message :text('queue: 1/1')")  # it waits, and says so
    message(two, "zoo_images: before")
    message(one, "zoo_animatediff: before")
    for page, prompt in ((one, "a cat at night"), (two, "an owl at night")):
        expected = [pairs.clip("zoo_images", given, prompt, 0, print).path.read_bytes() for given in (None, edit)]
        assert shown(page, "zoo_images", "img") == expected


def test_no_file_but_the_clips_is_served(server, runs):
    for path in ("/etc/passwd", runs / "train" / "cat" / "edit.safetensors", ROOT / "README.md"):
        with pytest.raises(urllib.error.HTTPError, match="403"):
            urllib.request.urlopen(f"{server.address}/gradio_api/file={path}", timeout=30)


def test_a_signal_amid_a_rendering_ends_it_with_one_line(opened, server):
    page = opened()
    tick(page, "zoo_animatediff")
    ask(page, "a fish at sunset")
    page.wait_for_selector("#message :text('before - ')")
    assert list(server.temporary.glob("unreel_demo_*"))
    server.send_signal(signal.SIGTERM)
    _, said = server.communicate(timeout=60)
    assert server.returncode == 143, said
    assert not list(server.temporary.glob("unreel_demo_*")), "clips were left"
    lines = [line for line in said.splitlines() if not line.startswith("unreel: left out: ")]
    assert len(lines) == 1 and lines[0].startswith("unreel: stopped by SIGTERM in: the page at http://127.0.0.1"), said
