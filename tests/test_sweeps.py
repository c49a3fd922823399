"""Sweeps of real runs: failures, kills, parallel workers, and the tables at the end."""

import json
import os
import signal
import subprocess
import sys
import time

import pytest

from test_train import ROOT, small_run
from unreel.scores import read_scores


@pytest.fixture
def command(small_folders, judge_folder, tmp_path):
    """A sweep of four short runs, one of which cannot be: its folder has three images."""
    (tmp_path / "conf" / "experiment").mkdir(parents=True)
    (tmp_path / "conf" / "experiment" / "small.yaml").write_text(f"""# @package _global_
slug: small
method: {{data: {{steps: 3}}}}
hydra: {{callbacks: {{sweep: {{folder: {tmp_path / "out"}, by: shots}}}}}}
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
    assert {s.shots for s in read_scores(tmp_path / "out" / "scores.jsonl")} == {0, 1, 2}
    assert len(finished(tmp_path)) == 3 and (tmp_path / "out" / "shots.png").is_file()


def test_a_sweep_killed_at_any_moment_goes_on_where_it_stopped(command, tmp_path):
    process = subprocess.Popen(command, cwd=tmp_path, stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
    for _ in range(6000):
        if finished(tmp_path) or process.poll() is not None:
            break
        time.sleep(0.02)
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    before = finished(tmp_path)
    assert 0 < len(before) < 3, "the kill came at the wrong moment to test anything"
    assert not (tmp_path / "out").exists()
    sweep(command, tmp_path)
    after = finished(tmp_path)
    assert len(after) == 3 and before.items() <= after.items(), "a finished run was repeated"
    table = (tmp_path / "out" / "table.md").read_text()
    sweep(command, tmp_path)
    assert finished(tmp_path) == after and (tmp_path / "out" / "table.md").read_text() == table
    assert not list(tmp_path.rglob("*partial*"))


def test_parallel_workers_make_the_same_table(command, tmp_path):
    sweep(command, tmp_path)
    alone = (tmp_path / "out" / "table.md").read_text()
    (tmp_path / "runs").rename(tmp_path / "runs_alone")
    (tmp_path / "cache").rename(tmp_path / "cache_alone")
    ended = sweep(command, tmp_path, "launcher=joblib", "hydra.launcher.n_jobs=2")
    assert "3 of 4 runs done" in ended.stderr and ended.returncode == 1, ended.stderr
    assert (tmp_path / "out" / "table.md").read_text() == alone


def test_the_runs_of_a_sweep_run_on_a_cluster_of_two_raylets(command, tmp_path):
    cluster_utils = pytest.importorskip("ray.cluster_utils")
    cluster = cluster_utils.Cluster(initialize_head=True, head_node_args={"num_cpus": 1})
    try:
        cluster.add_node(num_cpus=1)
        ended = sweep(command, tmp_path, "launcher=ray", f"hydra.launcher.ray.init.address='{cluster.address}'")
    finally:
        cluster.shutdown()
    assert "3 of 4 runs done" in ended.stderr and ended.returncode == 1, ended.stderr
    hosts = {json.loads(p.read_text())["process"] for p in (tmp_path / "runs" / "small").glob("*/status.json")}
    assert len(hosts) == 2, "one raylet did all of it"
