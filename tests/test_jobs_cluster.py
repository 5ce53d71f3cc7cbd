"""As a Ray job on a cluster of two nodes: needs `ray[default]`, the extra `cluster`, which has Ray's job server."""

import os
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import ray
from ray.cluster_utils import Cluster
from reference import everything
from test_jobs_profile import run

pytest.importorskip("opencensus", reason="needs ray[default]")


@pytest.fixture
def cluster(monkeypatch: pytest.MonkeyPatch) -> Iterator[Cluster]:
    monkeypatch.setenv("RAY_AUTH_MODE", "disabled")
    head = {
        "num_cpus": 2, "include_dashboard": True, "dashboard_host": "127.0.0.1", "dashboard_port": 8371,
        "_system_config": {"metrics_report_interval_ms": 200},
    }  # fmt: skip
    cluster = Cluster(initialize_head=True, head_node_args=head)
    try:
        cluster.add_node(num_cpus=1)
        yield cluster
    finally:
        ray.shutdown()
        cluster.shutdown()


@pytest.mark.ray
def test_a_ray_job_joins_the_cluster_and_counts_on_its_dashboard(
    cluster: Cluster, model_folder: Path, make_corpora: Any, tmp_path: Path
) -> None:
    corpora = make_corpora({"python": 60})
    run(model_folder, tmp_path / "here", corpora)
    profile = [
        sys.executable, "-c", "from neurotally.jobs.cli import main; main()",
        "profile", str(model_folder), str(tmp_path / "there"),
        "--corpora", str(corpora), "--row-tokens", "64", "--groups", "3", "--triggers", "4", "--workers", "3",
    ]  # fmt: skip
    ray_command = [sys.executable, "-m", "ray.scripts.scripts"]
    submit = [*ray_command, "job", "submit", "--address", "http://127.0.0.1:8371", "--", *profile]
    job = subprocess.Popen(submit, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, env=os.environ.copy())
    ray.init(address=cluster.address, log_to_driver=False)
    endpoints = [f"http://{node['NodeManagerAddress']}:{node['MetricsExportPort']}/metrics" for node in ray.nodes()]
    told: set[str] = set()
    while job.poll() is None:
        for endpoint in endpoints:
            with urllib.request.urlopen(endpoint, timeout=10) as page:
                told |= {line for line in page.read().decode().splitlines() if "neurotally_" in line}
        time.sleep(0.2)
    assert job.returncode == 0, job.communicate()[0]
    assert everything(tmp_path / "here") == everything(tmp_path / "there")
    for worker in range(3):
        assert any("neurotally_units" in line and f'worker="{worker}"' in line.lower() for line in told), told
