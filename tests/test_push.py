"""push: what is sent to a hub, here one that listens on this machine, and what is refused before anything is."""

import base64
import json
import os
import subprocess
import sys
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest

from unreel.push import files_of

TOKEN = "hf_of_a_test"


@pytest.fixture
def run(tmp_path):
    """A finished run's folder with everything that one may hold."""
    run = tmp_path / "run"
    own = ["README.md", "edit.safetensors", "text_encoder/config.json", "text_encoder/model.safetensors",
           "lora/x.safetensors", "comfyui/text_encoders/x.safetensors", "edits/other/edit.safetensors",
           "edits/other/unet/config.json"]  # fmt: skip
    rest = ["config.yaml", "scores.jsonl", "report.html", "checkpoints/last.ckpt", "wandb/x.wandb", "clips/a.mp4",
            "pipeline/zoo/model_index.json", "pipeline/zoo/text_encoder/model.safetensors", "text_encoder/.partial/x",
            "edits/other/pipeline/zoo/model_index.json"]  # fmt: skip
    for name in own + rest:
        (run / name).parent.mkdir(parents=True, exist_ok=True)
        (run / name).write_text("---\nlicense: other\n---\n" if name == "README.md" else f"of {name}")
    (run / "status.json").write_text('{"status": "done"}')
    (tmp_path / "base.safetensors").write_text("base weights")
    for place in ("pipeline/zoo/model.safetensors", "text_encoder/linked.safetensors"):
        (run / place).symlink_to(tmp_path / "base.safetensors")
    return run, sorted(own)


@pytest.fixture
def hub():
    """A hub as far as an upload needs one; (its address, what it was asked)."""
    asked = []

    class Hub(BaseHTTPRequestHandler):
        def do_POST(self):
            body = self.rfile.read(int(self.headers["Content-Length"])).decode()
            asked.append((self.path, self.headers["Authorization"], body))
            if self.headers["Authorization"] != f"Bearer {TOKEN}":
                self.answer(401, {"error": "who\nare you?"})
            elif self.path.endswith("/preupload/main"):
                files = [{"path": f["path"], "uploadMode": "regular", "shouldIgnore": False, "oid": None}
                         for f in json.loads(body)["files"]]  # fmt: skip
                self.answer(200, {"files": files})
            else:
                self.answer(200, {"url": f"{address}/me/it", "name": "me/it", "commitUrl": f"{address}/me/it/commit/1",
                                  "commitOid": "1", "pullRequestUrl": None})  # fmt: skip

        def do_GET(self):
            asked.append((self.path, self.headers["Authorization"], ""))
            self.answer(404, {"error": "there is nothing"})

        def answer(self, status, said):
            data = json.dumps(said).encode()
            self.send_response(status)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(data)))
            self.end_headers()
            self.wfile.write(data)

        def log_message(self, *_):
            """Not to the terminal."""

    server = ThreadingHTTPServer(("127.0.0.1", 0), Hub)
    address = f"http://127.0.0.1:{server.server_port}"
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield address, asked
    server.shutdown()
    server.server_close()


def pushed(tmp_path, hub, *arguments, **more):
    own = {"HF_ENDPOINT": hub, "HF_TOKEN": TOKEN, "HF_HOME": str(tmp_path / "home"), **more}
    env = {key: value for key, value in (os.environ | own).items() if value and (key in own or "HF_" not in key)}
    command = [sys.executable, "-m", "unreel.push", *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, env=env, check=False)


def test_card_edit_and_exports_are_sent_and_no_base_weights(run, hub, tmp_path):
    (folder, own), (address, asked) = run, hub
    assert files_of(folder) == own
    done = pushed(tmp_path, address, folder, "repo=me/it")
    assert done.returncode == 0 and f"{address}/me/it" in done.stdout, done.stderr
    created = next(json.loads(body) for path, _, body in asked if path == "/api/repos/create")
    assert (created["name"], created["organization"], created["visibility"]) == ("it", "me", "private")
    commit = next(body for path, _, body in asked if path.endswith("/commit/main"))
    sent = {line["value"]["path"]: base64.b64decode(line["value"]["content"]).decode()
            for line in map(json.loads, commit.splitlines()) if line["key"] == "file"}  # fmt: skip
    assert sorted(sent) == own
    assert sent["edits/other/edit.safetensors"] == "of edits/other/edit.safetensors"
    assert pushed(tmp_path, address, folder, "repo=me/it", "private=false").returncode == 0
    created = [json.loads(body) for path, _, body in asked if path == "/api/repos/create"][-1]
    assert created["visibility"] == "public"


@pytest.mark.parametrize(
    ("arguments", "says", "more"),
    [
        (["RUN", "repo=me/it"], "found no token of the hub: expected HF_TOKEN", {"HF_TOKEN": ""}),
        (["RUN", "repo=me/it"], "HF_HUB_OFFLINE is set", {"HF_HUB_OFFLINE": "1"}),
        (["RUN", "repo=it"], "found repo='it': expected repo=USER/NAME", {}),
        (["RUN", "repo=me/../it"], "expected repo=USER/NAME", {}),
        (["RUN", "repo=me/i t"], "Repo id must use alphanumeric chars", {}),
        (["RUN"], "expected python -m unreel.push RUN_FOLDER repo=USER/NAME", {}),
        (["RUN", "repo=me/it", "private=maybe"], "expected python -m unreel.push", {}),
        (["RUN", "repo=me/it", "colour=red"], "found colour: expected repo, private", {}),
        (["/nowhere/at/all", "repo=me/it"], "/nowhere/at/all is no run's folder", {}),
        (["UNFINISHED", "repo=me/it"], "is running, not done: give its command again first", {}),
        (["BARE", "repo=me/it"], "has no README.md: give its command again with export=[transformers]", {}),
    ],
)
def test_what_cannot_be_sent_is_one_line_and_the_hub_is_asked_nothing(run, hub, tmp_path, arguments, says, more):
    (folder, _), (address, asked) = run, hub
    if "UNFINISHED" in arguments:
        (folder / "status.json").write_text('{"status": "running"}')
    if "BARE" in arguments:
        (folder / "README.md").unlink()
    places = [folder if argument in ("RUN", "UNFINISHED", "BARE") else argument for argument in arguments]
    done = pushed(tmp_path, address, *places, **more)
    assert done.returncode == 1 and says in done.stderr
    assert len(done.stderr.splitlines()) == 1 and not done.stdout and not asked


@pytest.mark.parametrize("why", ["token", "nobody"])
def test_a_hub_that_refuses_or_is_not_there_is_one_line(run, hub, tmp_path, why):
    address = "http://127.0.0.1:9" if why == "nobody" else hub[0]
    done = pushed(tmp_path, address, run[0], "repo=me/it", HF_TOKEN="hf_another")
    assert done.returncode == 1 and len(done.stderr.splitlines()) == 1, done.stderr
    assert done.stderr.startswith("unreel: the hub " + ("cannot be reached" if why == "nobody" else "refused"))
