"""Sweeps of real runs: failures, kills, parallel workers, and the tables at the end."""

import json
import os
import re
import signal
import subprocess
import sys
import time

import pytest

from conftest import ROOT, configured
from test_train import small_run
from unreel.scores import read_scores


@pytest.fixture
def command(small_folders, judge_folder, tmp_path):
    """A sweep of four short runs, one of which cannot be: its folder has three images."""
    (tmp_path / "conf" / "experiment").mkdir(parents=True)
    (tmp_path / "conf" / "experiment" / "small.yaml").write_text(f"""# @package _global_
slug: small
method: {{data: {{steps: 3}}}}
hydra:
  callbacks: {{sweep: {{folder: {tmp_path / "never"}, by: shots}}}}
""")
    options = [
        o
        for o in small_run(small_folders, judge_folder, tmp_path)
        if o.split("=")[0] not in ("shots", "method.data.steps")
    ]
    options += ["experiment=small", "logger=none", "shots=1,2,-1,0", "threads=1"]
    return [sys.executable, str(ROOT / "train.py"), "-m", f"--config-dir={tmp_path / 'conf'}", *options]


def sweep(command, tmp_path, *more):
    return subprocess.run([*command, *more], capture_output=True, text=True, cwd=tmp_path, timeout=600, check=False)


def out(tmp_path):
    """Where the tables are of a sweep that differs from what its experiment says."""
    return tmp_path / "runs" / "small" / "tables"


def mirrors(folder):
    """The ids on W&B of the runs in a folder of runs."""
    return {json.loads(path.read_text())["mirror"] for path in folder.glob("small/*/status.json")}


def finished(tmp_path):
    """Run folder -> when its scores were written."""
    folder = tmp_path / "runs" / "small"
    done = [p.parent for p in folder.glob("*/status.json") if json.loads(p.read_text())["status"] == "done"]
    return {path.name: (path / "scores.jsonl").stat().st_mtime_ns for path in done}


def test_a_failed_run_is_named_the_others_go_on_and_the_exit_status_says_so(command, tmp_path):
    ended = sweep(command, tmp_path)
    assert ended.returncode == 1, ended.stderr
    assert (
        "3 of 4 runs done" in ended.stderr and "shots=-1" in ended.stderr and "expected a whole number" in ended.stderr
    )
    assert "Traceback" not in ended.stderr
    scores = read_scores(out(tmp_path) / "scores.jsonl")
    assert {s.shots for s in scores} == {0, 1, 2}
    assert {s.setting for s in scores} == {"guard.check_every=2 guard.gone_below=-9"}  # what was given of the method
    assert len(finished(tmp_path)) == 3 and (out(tmp_path) / "shots.png").is_file()


@pytest.mark.parametrize("launcher", [[], ["launcher=joblib", "hydra.launcher.n_jobs=2"]], ids=["alone", "joblib"])
def test_a_sweep_killed_at_any_moment_goes_on_where_it_stopped(command, launcher, tmp_path):
    """Workers outlive the kill of the process that they work for, and end the run that they are at."""
    command = [*command, *launcher]
    process = subprocess.Popen(command, cwd=tmp_path, stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
    for _ in range(6000):
        if finished(tmp_path) or process.poll() is not None:
            break
        time.sleep(0.02)
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    before = finished(tmp_path)
    assert 0 < len(before) < 3, "the kill came at the wrong moment to test anything"
    assert not out(tmp_path).exists()
    old, new = (tmp_path / "cache" / "aa" / f".partial_{name}.safetensors" for name in ("of_the_killed", "of_others"))
    old.parent.mkdir(exist_ok=True)
    old.write_bytes(b"half")
    os.utime(old, (0, 0))
    new.write_bytes(b"half")
    sweep(command, tmp_path)
    assert new.exists() and not old.exists(), "what other sweeps write is theirs; what nobody writes to is gone"
    after = finished(tmp_path)
    assert len(after) == 3 and before.items() <= after.items(), "a finished run was repeated"
    table = (out(tmp_path) / "table.md").read_text()
    sweep(command, tmp_path)
    assert finished(tmp_path) == after and (out(tmp_path) / "table.md").read_text() == table
    assert not list((tmp_path / "runs").rglob("*partial*")) and not (tmp_path / "never").exists()


@pytest.mark.parametrize(
    ("options", "says"),
    [
        (["objectives=[forget,retian]"], "found objectives=retian: expected some of forget, context, retain"),
        (["slug=a,b"], "found slug=a,b in a sweep: expected one value"),
        (["hydra/sweeper=optuna", "objectives=[forget,retain]"], "2 objectives for 1 of hydra.sweeper.direction"),
    ],
)
def test_a_sweep_that_cannot_be_ends_before_its_first_run(command, options, says, tmp_path):
    pytest.importorskip("optuna")
    ended = sweep(command, tmp_path, *options)
    assert ended.returncode != 0 and says in ended.stderr and "Traceback" not in ended.stderr
    assert not (tmp_path / "runs").exists()


def test_parallel_workers_make_the_same_table(command, tmp_path):
    sweep(command, tmp_path)
    alone = (out(tmp_path) / "table.md").read_text()
    (tmp_path / "runs").rename(tmp_path / "runs_alone")
    (tmp_path / "cache").rename(tmp_path / "cache_alone")
    ended = sweep(command, tmp_path, "launcher=joblib", "hydra.launcher.n_jobs=2")
    assert "3 of 4 runs done" in ended.stderr and ended.returncode == 1, ended.stderr
    assert (out(tmp_path) / "table.md").read_text() == alone
    assert len(mirrors(tmp_path / "runs") | mirrors(tmp_path / "runs_alone")) == 6, "a new folder is a new run on W&B"


def test_a_search_for_two_objectives_goes_on_after_a_failed_trial(command, tmp_path):
    pytest.importorskip("optuna")
    search = [option for option in command if not option.startswith("shots=")]
    search += ["hydra/sweeper=optuna", "hydra/sweeper/sampler=random", "hydra.sweeper.sampler.seed=0"]
    # these models retain nothing, of which a share could be kept
    search += ["hydra.sweeper.direction=[minimize,maximize]", "objectives=[forget,forget]"]
    search += ["hydra.sweeper.n_jobs=1", "hydra.sweeper.n_trials=4", "hydra.sweeper.max_failure_rate=1.0"]
    ended = sweep(search, tmp_path, "shots=choice(1,-1,0)")
    done, of = map(int, re.search(r"(\d) of (\d) runs done", ended.stderr).groups())
    assert ended.returncode == 1 and of == 4 and 0 < done < 4, ended.stderr
    assert len(re.findall("failed: .*shots=-1", ended.stderr)) == 4 - done
    table = (out(tmp_path) / "table.md").read_text()
    assert "| `shots` | run ends in |" in table and "`objectives`" not in table, "columns are what trials differ in"
    shots = [int(line.split("|")[4]) for line in table.splitlines()[2:]]
    assert len(shots) == done and -1 not in shots


@pytest.mark.parametrize("path", sorted((ROOT / "conf" / "experiment").glob("*.yaml")), ids=lambda path: path.stem)
def test_every_experiment_is_written_down_and_can_be_composed(path):
    config = configured("train", [f"experiment={path.stem}"])
    assert config.slug == path.stem and config.trainer.devices == 1
    images = configured("train", [f"experiment={path.stem}"], hydra=True).hydra.callbacks.sweep.get("images")
    assert images is None or images in {recipient.name for recipient in config.t2v.values()}
    written = (ROOT / "experiments" / path.stem / "README.md").read_text()
    assert "**Question.**" in written and "**Prediction**" in written and f"experiment={path.stem}" in written


@pytest.mark.parametrize("launcher", ["joblib", "ray", "slurm"])
def test_every_launcher_preset_can_be_composed(launcher, tmp_path):
    pytest.importorskip({"slurm": "submitit"}.get(launcher, launcher))
    command = [sys.executable, str(ROOT / "train.py"), f"launcher={launcher}", "concept=cat", "--cfg=hydra"]
    shown = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path, check=True).stdout
    assert f"_target_: hydra_plugins.hydra_{ {'slurm': 'submitit'}.get(launcher, launcher) }_launcher." in shown


def test_the_runs_of_a_sweep_run_on_a_cluster_of_two_raylets(command, tmp_path):
    cluster_utils = pytest.importorskip("ray.cluster_utils")
    cluster = cluster_utils.Cluster(initialize_head=True, head_node_args={"num_cpus": 1})
    try:
        cluster.add_node(num_cpus=1)
        ended = sweep(command, tmp_path, "launcher=ray", f"hydra.launcher.ray.init.address='{cluster.address}'")
    finally:
        cluster.shutdown()
    assert "3 of 4 runs done" in ended.stderr and ended.returncode == 1, ended.stderr
    made = [json.loads(p.read_text()) for p in (tmp_path / "runs" / "small").glob("*/status.json")]
    assert len({run["process"] for run in made}) == 2, "one raylet did all of it"
    for run in made:  # what the worker was started by is no command of ours
        assert run["command"].startswith(f"python train.py --config-dir={tmp_path / 'conf'} "), run["command"]
        assert "experiment=small" in run["command"] and run["command"].endswith(" hydra.mode=RUN")
