"""Ray: who may talk to it, and what is left when it, a worker, a device of one, or the run dies."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest
from conftest import lay_out
from launching import start_server
from reference import everything
from test_jobs_profile import go_on, run, start, wait_for_units

from neurotally.jobs.engines.ray_engine import RayEngine
from neurotally.jobs.model_config import ModelConfig

TAG = "NEUROTALLY_TEST_TAG"


@pytest.fixture
def tag(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """Set in the environment of what a test starts; nothing of it is left behind."""
    start_server()
    monkeypatch.setenv(TAG, str(tmp_path))
    yield str(tmp_path)
    for process in tagged(str(tmp_path)):
        process.kill()


def tagged(tag: str) -> list[psutil.Process]:
    """The processes, other than this one, that were started with the tag."""
    found = []
    for process in psutil.process_iter():
        try:
            if process.environ().get(TAG) == tag and process.status() != psutil.STATUS_ZOMBIE:
                found.append(process)
        except psutil.Error:
            continue
    return found


def named(tag: str, name: str) -> list[psutil.Process]:
    found = []
    for process in tagged(tag):
        try:
            if name in process.name() or name in " ".join(process.cmdline()):
                found.append(process)
        except psutil.Error:
            continue
    return found


def wait_for(tag: str, name: str, but: set[int] = frozenset()) -> psutil.Process:  # type: ignore[assignment]
    deadline = time.monotonic() + 400
    while time.monotonic() < deadline:
        for process in named(tag, name):
            if process.pid not in but:
                return process
        time.sleep(0.1)
    raise AssertionError(f"no {name} came up")


def all_gone(tag: str) -> bool:
    deadline = time.monotonic() + 20
    while time.monotonic() < deadline and tagged(tag):
        time.sleep(0.2)
    return not tagged(tag)


def takes_sigterm() -> bool:
    """Whether the system, too, has a handler of this process for SIGTERM."""
    (caught,) = (line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("SigCgt"))
    return bool(int(caught.split()[1], 16) >> (signal.SIGTERM - 1) & 1)


def outcome(errors: str) -> list[str]:
    """What a run says beside how it begins."""
    return [line for line in errors.splitlines() if line and not line.startswith(("loading ", "memory: "))]


@pytest.mark.ray
def test_only_who_has_the_token_of_this_process_can_talk_to_ray(model_folder: Path, tag: str, tmp_path: Path) -> None:
    import ray

    before = signal.signal(signal.SIGTERM, signal.default_int_handler)
    engine = RayEngine(ModelConfig(str(model_folder)), 1, tmp_path / "ray")
    try:
        address, token = ray.get_runtime_context().gcs_address, os.environ["RAY_AUTH_TOKEN"]
        assert len(token) == 64
        free = {key: value for key, value in os.environ.items() if not key.startswith("RAY_")}
        client = f"import ray; ray.init({address!r}, log_to_driver=False); print('joined')"

        def join(**more: str) -> subprocess.CompletedProcess[str]:
            command = [sys.executable, "-c", client]
            return subprocess.run(command, env={**free, **more}, capture_output=True, text=True, timeout=240)

        for refused in (join(), join(RAY_AUTH_MODE="token", RAY_AUTH_TOKEN="0" * 64)):
            assert "joined" not in refused.stdout
            assert "InvalidAuthToken" in refused.stderr
        assert "joined" in join(RAY_AUTH_MODE="token", RAY_AUTH_TOKEN=token).stdout
    finally:
        engine.close()
        is_ours = takes_sigterm()
        signal.signal(signal.SIGTERM, before)
    assert is_ours
    assert not (tmp_path / "ray").exists()
    assert all_gone(tag)


@pytest.mark.parametrize("name", ["raylet", "gcs_server"])
@pytest.mark.ray
def test_the_end_of_ray_ends_the_run_at_once_and_it_goes_on(
    name: str, model_folder: Path, make_corpora: Any, tag: str, tmp_path: Path
) -> None:
    corpora = make_corpora({"python": 60})
    process = start(model_folder, tmp_path / "s", corpora, "--workers", "2")
    wait_for_units(tmp_path / "s", 5, process, timeout_s=400)
    agents = [process for process in named(tag, "raylet/raylet")[0].children() if "Agent" in process.name()]
    assert agents
    named(tag, name)[0].kill()
    began = time.monotonic()
    status, out, errors = process.finish()
    assert time.monotonic() - began < 60
    assert status == 1
    assert out == ""
    assert errors.splitlines()[-1].startswith("neurotally: Ray's process ")
    assert "Traceback" not in errors
    assert psutil.wait_procs(agents, timeout=5)[1] == []  # else they try for a minute to tell the GCS of the end
    assert all_gone(tag)
    go_on(model_folder, tmp_path / "s", corpora)
    go_on(model_folder, tmp_path / "clean", corpora)
    assert everything(tmp_path / "s") == everything(tmp_path / "clean")


@pytest.mark.parametrize("seen", ["gcs_server", "raylet/raylet", "Agent"])
@pytest.mark.ray
def test_the_end_of_ray_while_it_starts_is_told(
    seen: str, model_folder: Path, make_corpora: Any, tag: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("RAY_gcs_rpc_server_reconnect_timeout_s", "5")  # else it takes a minute
    process = start(model_folder, tmp_path / "s", make_corpora({"python": 20}), "--workers", "2")
    wait_for(tag, seen)
    named(tag, "gcs_server")[0].terminate()
    status, out, errors = process.finish()
    assert status == 1, errors
    assert out == ""
    assert all_gone(tag)  # the guard with them, which tells
    last = process.errors.splitlines()[-1]
    assert last.startswith(("neurotally: Ray's process ", "neurotally: can't start Ray on this machine: ")), errors


@pytest.mark.ray
def test_a_killed_worker_and_replacements_that_die_while_they_load_are_replaced(
    model_folder: Path, make_corpora: Any, tag: str, tmp_path: Path
) -> None:
    corpora = make_corpora({"python": 60})
    process = start(model_folder, tmp_path / "s", corpora, "--workers", "2")
    wait_for_units(tmp_path / "s", 5, process, timeout_s=400)
    first, other = named(tag, "ray::ActorWorker")
    assert {first.nice(), other.nice()} == {psutil.Process().nice()}  # Ray's own workers give way to other programs
    other.suspend()  # so that the run doesn't end meanwhile
    first.kill()
    seen = {first.pid, other.pid}
    for _ in range(2):
        replacement = wait_for(tag, "ray::ActorWorker", seen)
        seen.add(replacement.pid)
        replacement.kill()
    other.resume()
    status, _, errors = process.finish(timeout_s=400)
    assert status == 0, errors
    assert "worker died" in errors
    assert all_gone(tag)
    go_on(model_folder, tmp_path / "clean", corpora)
    assert everything(tmp_path / "s") == everything(tmp_path / "clean")


@pytest.fixture(scope="module")
def texts(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return lay_out(tmp_path_factory.mktemp("text") / "corpora", {"python": 60})


@pytest.fixture(scope="module")
def of_two_devices(model_folder: Path, texts: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    """What is in a store of them that two devices made together."""
    path = tmp_path_factory.mktemp("stores") / "s"
    run(model_folder, path, texts, devices_per_worker=2, max_unit_bytes=400)
    return everything(path)


@pytest.mark.ray
def test_killed_with_its_terminal_and_resumed_gives_the_same_bits(
    model_folder: Path, texts: Path, of_two_devices: dict[str, bytes], tag: str, tmp_path: Path
) -> None:
    process = start(model_folder, tmp_path / "s", texts, "--devices-per-worker", "2")
    wait_for_units(tmp_path / "s", 5, process)
    assert len(named(tag, "neurotally.jobs.engines.rank")) == 2
    os.killpg(process.pid, signal.SIGKILL)
    assert process.finish()[0] == -signal.SIGKILL
    assert all_gone(tag)
    run(model_folder, tmp_path / "s", texts, devices_per_worker=2, max_unit_bytes=400)
    assert everything(tmp_path / "s") == of_two_devices


@pytest.mark.ray
def test_workers_of_two_devices_each_give_the_same_bits_though_a_device_dies(
    model_folder: Path, texts: Path, of_two_devices: dict[str, bytes], tag: str, tmp_path: Path
) -> None:
    process = start(model_folder, tmp_path / "s", texts, "--workers", "2", "--devices-per-worker", "2")
    wait_for_units(tmp_path / "s", 5, process, timeout_s=400)
    members = named(tag, "neurotally.jobs.engines.rank")
    assert len(members) == 4
    members[0].kill()
    wait_for(tag, "neurotally.jobs.engines.rank", {member.pid for member in members})
    status, _, errors = process.finish(timeout_s=400)
    assert status == 0, errors
    assert all_gone(tag)
    assert everything(tmp_path / "s") == of_two_devices


@pytest.mark.parametrize("when", ["gcs_server", "ray::ActorWorker"], ids=["while Ray starts", "while models load"])
@pytest.mark.parametrize(("number", "code"), [(signal.SIGTERM, 143), (signal.SIGINT, 130)], ids=["SIGTERM", "SIGINT"])
@pytest.mark.ray
def test_a_signal_before_the_run_leaves_nothing_behind(
    when: str, number: signal.Signals, code: int, model_folder: Path, make_corpora: Any, tag: str, tmp_path: Path
) -> None:
    process = start(model_folder, tmp_path / "s", make_corpora({"python": 20}), "--workers", "2")
    wait_for(tag, when)
    os.kill(process.pid, number)
    status, out, errors = process.finish()
    assert status == code, errors
    assert out == ""
    lines = outcome(errors)
    assert len(lines) == 1, errors
    assert "the same command goes on from" in lines[0]
    assert all_gone(tag)


@pytest.mark.ray
def test_a_signal_that_ray_sees_while_it_waits(tag: str) -> None:
    waiting = (
        "import os, signal, threading, ray\n"
        "from neurotally.jobs import cli\n"
        "from neurotally.jobs.engines import ray_engine\n"
        "from neurotally.jobs.model_config import ModelConfig\n"
        "ray_engine._LOOK_EVERY_S = 4.0\n"
        "def profile(*_):\n"
        "    engine = ray_engine.RayEngine(ModelConfig('none'), 1, __import__('pathlib').Path('session'))\n"
        "    threading.Timer(1.5, os.kill, (os.getpid(), signal.SIGTERM)).start()\n"
        "    try:\n"
        "        engine._get_all([ray.remote(lambda: __import__('time').sleep(60)).remote()])\n"
        "    finally:\n"
        "        engine.close()\n"
        "cli.cli.add_command(cli.click.command('wait')(profile))\n"
        "cli.main()\n"
    )
    process = subprocess.run(
        [sys.executable, "-c", waiting, "wait"], capture_output=True, text=True, cwd=tag, timeout=240
    )
    assert process.returncode == 143, process.stderr
    assert len(process.stderr.splitlines()) == 1
    assert "the same command goes on from" in process.stderr
    assert all_gone(tag)


@pytest.mark.parametrize(("number", "code"), [(signal.SIGTERM, 143), (signal.SIGINT, 130)], ids=["SIGTERM", "SIGINT"])
@pytest.mark.ray
def test_a_signal_while_the_model_loads_here(
    number: signal.Signals, code: int, model_folder: Path, make_corpora: Any, tmp_path: Path
) -> None:
    process = start(model_folder, tmp_path / "s", make_corpora({"python": 20}))
    process.wait_until_it_says("loading ")
    os.kill(process.pid, number)
    status, out, errors = process.finish()
    lines = outcome(errors)
    assert (status, out, len(lines)) == (code, "", 1), errors
