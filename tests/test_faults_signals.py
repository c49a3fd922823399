"""SIGTERM and Ctrl-C in every phase of a run and of a sweep: what was done stays, and the exit status tells of it."""

import json
import os
import re
import signal
import subprocess
import sys
import time

import psutil
import pytest

from conftest import ROOT
from test_train import only_run, small_run

PHASES = {  # the file that appears in a phase -> what the message says of it
    "clips before": ("cache/*/*.lock", "clips before"),
    "training": ("runs/train/*/checkpoints/last.ckpt", "training, step"),
    "clips after": ("runs/train/*/text_encoder", "clips after|between two phases"),
}


def started(command, tmp_path, **more):
    env = {key: value for key, value in os.environ.items() if key != "WANDB_SERVICE"}
    return subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, cwd=tmp_path, env=env, **more
    )


def wait_for(condition, process):
    for _ in range(12000):
        if condition() or process.poll() is not None:
            break
        time.sleep(0.01)
    assert process.poll() is None, process.communicate()


def one_line(said: str) -> str:
    """The line that the program says, and no traceback."""
    assert "Traceback" not in said, said
    (line,) = [line for line in said.splitlines() if line.startswith("unreel: ")]
    return line


SIGTERM, CTRL_C = (signal.SIGTERM, 143), (signal.SIGINT, 130)


def slow(*case):
    return pytest.param(*case, marks=pytest.mark.slow)


@pytest.mark.parametrize(
    ("phase", "number", "status"),
    [("training", *SIGTERM), ("clips before", *CTRL_C), slow("clips after", *SIGTERM), slow("training", *CTRL_C),
     slow("clips before", *SIGTERM), slow("clips after", *CTRL_C)],
)  # fmt: skip
def test_a_signal_in_any_phase_ends_the_run_with_a_line_and_its_status(
    small_folders, judge_folder, tmp_path, phase, number, status
):
    appears, where = PHASES[phase]
    steps = 6 if phase == "clips after" else 400
    options = [*small_run(small_folders, judge_folder, tmp_path), f"method.data.steps={steps}", "evaluation.prompts=4"]
    command = [sys.executable, str(ROOT / "train.py"), *options]
    process = started(command, tmp_path)
    wait_for(lambda: list(tmp_path.glob(appears)), process)
    process.send_signal(number)
    _, said = process.communicate(timeout=120)
    assert process.returncode == status, said
    assert signal.Signals(number).name in (line := one_line(said)) and re.search(where, line) and "same command" in line
    record = json.loads((only_run(tmp_path) / "status.json").read_text())
    assert record["status"] == "stopped" and record["message"] in line
    assert not list((tmp_path / "runs").rglob("*partial*")), "half a file was left"


ALONE: list[str] = []
JOBLIB = ["launcher=joblib", "hydra.launcher.n_jobs=2"]


@pytest.mark.parametrize(
    ("launcher", "number", "status"),
    [
        (JOBLIB, *SIGTERM),
        slow(JOBLIB, *CTRL_C),
        slow(ALONE, *SIGTERM),
        (ALONE, *CTRL_C),
    ],
)
def test_a_signal_ends_a_sweep_and_each_of_its_jobs_says_where(
    small_folders, judge_folder, tmp_path, launcher, number, status
):
    options = [*small_run(small_folders, judge_folder, tmp_path), "method.data.steps=400", "seed=0,1,2", "logger=none"]
    process = started([sys.executable, str(ROOT / "train.py"), "-m", *options, *launcher], tmp_path)
    wait_for(lambda: list((tmp_path / "runs").glob("train/*/checkpoints/last.ckpt")), process)
    process.send_signal(number)
    _, said = process.communicate(timeout=120)
    assert process.returncode == status, said
    records = [json.loads(path.read_text()) for path in (tmp_path / "runs" / "train" / "jobs").glob("*.json")]
    assert "training, step" in one_line(said), records
    assert records and all(record["error"].startswith("stopped by") for record in records)
    states = [json.loads(p.read_text())["status"] for p in (tmp_path / "runs" / "train").glob("*/status.json")]
    assert states and set(states) == {"stopped"}


@pytest.mark.slow
@pytest.mark.parametrize(("number", "status"), [SIGTERM, CTRL_C])
def test_a_signal_ends_a_sweep_on_ray(small_folders, judge_folder, tmp_path, number, status):
    """Ray ends its workers in its own way: what they were at, their records do not always say."""
    pytest.importorskip("ray")
    options = [*small_run(small_folders, judge_folder, tmp_path), "method.data.steps=400", "seed=0,1,2", "logger=none"]
    command = [sys.executable, str(ROOT / "train.py"), "-m", *options, "launcher=ray"]
    process = started([*command, "+hydra.launcher.ray.init.num_cpus=2"], tmp_path)
    wait_for(lambda: list((tmp_path / "runs").glob("train/*/checkpoints/last.ckpt")), process)
    process.send_signal(number)
    said = process.communicate(timeout=240)[1]
    assert process.returncode == status, said
    (line,) = [line for line in said.splitlines() if line.startswith("unreel: ")]
    assert signal.Signals(number).name in line and "same command" in line
    records = [json.loads(path.read_text()) for path in (tmp_path / "runs" / "train" / "jobs").glob("*.json")]
    assert records and all(record["error"] for record in records)


@pytest.mark.slow
def test_a_signal_ends_all_processes_of_a_training(small_folders, judge_folder, tmp_path):
    options = [*small_run(small_folders, judge_folder, tmp_path), "method.data.steps=400", "trainer=ddp_cpu"]
    process = started([sys.executable, str(ROOT / "train.py"), *options, "logger=none"], tmp_path)
    wait_for(lambda: list((tmp_path / "runs").glob("train/*/checkpoints/last.ckpt")), process)
    children = psutil.Process(process.pid).children(recursive=True)
    assert children
    process.send_signal(signal.SIGTERM)
    _, said = process.communicate(timeout=120)
    assert process.returncode == 143, said
    assert "training, step" in one_line(said)
    assert not psutil.wait_procs(children, timeout=30)[1], "a process of the training was left"
    assert json.loads((only_run(tmp_path) / "status.json").read_text())["status"] == "stopped"


@pytest.mark.parametrize(("number", "status"), [SIGTERM, slow(*CTRL_C)])
def test_a_signal_ends_the_workers_that_render(small_folders, judge_folder, tmp_path, number, status):
    """Ctrl-C at a terminal reaches all processes at once."""
    pytest.importorskip("joblib")
    options = [*small_run(small_folders, judge_folder, tmp_path), "t2v.animatediff.num_inference_steps=200"]
    options += ["workers.processes=2", "evaluation.batch=1", "logger=none"]
    process = started([sys.executable, str(ROOT / "train.py"), *options], tmp_path, start_new_session=True)
    wait_for(lambda: list((tmp_path / "cache").glob("*/*.safetensors")), process)
    children = psutil.Process(process.pid).children(recursive=True)
    assert len(children) >= 2
    os.killpg(process.pid, number) if number == signal.SIGINT else process.send_signal(number)
    _, said = process.communicate(timeout=120)
    assert process.returncode == status, said
    assert signal.Signals(number).name in (line := one_line(said)) and "clips before" in line
    assert not psutil.wait_procs(children, timeout=30)[1], "a worker was left"
    assert json.loads((only_run(tmp_path) / "status.json").read_text())["status"] == "stopped"
    assert not list((tmp_path / "runs").rglob("*partial*"))


def test_a_job_whose_process_was_killed_is_named_in_the_record(small_folders, judge_folder, tmp_path):
    options = [*small_run(small_folders, judge_folder, tmp_path), "method.data.steps=400", "seed=0,1", "logger=none"]
    process = started([sys.executable, str(ROOT / "train.py"), "-m", *options], tmp_path)
    wait_for(lambda: list((tmp_path / "runs").glob("train/*/status.json")), process)
    process.kill()
    process.communicate()
    (record,) = [json.loads(path.read_text()) for path in (tmp_path / "runs" / "train" / "jobs").glob("*.json")]
    assert record["process"] == process.pid and "ended from outside" in record["error"]
