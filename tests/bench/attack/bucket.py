"""Stores in a bucket: connections cut, the server away, drivers killed or a second one on another machine.

Each seed draws a command (`profile` half of the time, else a pass), one to three disturbed launches, of texts that lie
in the bucket too, and a last one in peace: the store must be that of an undisturbed run to a folder, bit for bit.
"""

import argparse
import multiprocessing
import os
import random
import shutil
import signal
import time
from multiprocessing.connection import Connection
from pathlib import Path

from bench.attack.contents import contents, difference
from bench.attack.findings import Findings
from bench.attack.kills import new_store
from bench.attack.launch import Launch, Outcome, run, start
from bench.attack.material import PASSES, SMALL_TASKS, Material, make_material
from object_store import BUCKET, ENVIRONMENT, CuttingProxy, objects, put_folder, serving

from neurotally.profiler.store import RUN_FOLDER

_LIMIT_S = 300.0
_KINDS = ("cuts", "cuts", "away", "gone", "SIGKILL", "SIGKILL", "SIGSTOP", "other machine")
_MOST_DISTURBED = 3
_TEXTS = ("corpora", "heldout")
_MOST_CUTS = 8


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Of this attack."""
    parser.add_argument("--runs", type=int, default=40)
    parser.add_argument("--documents", type=int, default=12, help="In each of the three corpora.")
    parser.add_argument("--commands", default=",".join(["profile", *PASSES]), metavar="NAME,...")


def attack(arguments: argparse.Namespace, folder: Path) -> Findings:
    """All seeds."""
    findings = Findings("bucket", seed=arguments.seed, runs=arguments.runs)
    material = make_material(folder / "material", arguments.seed, arguments.documents)
    commands = arguments.commands.split(",")
    passes = [name for name in commands if name != "profile"]
    base, references = folder / "base", dict[str, dict[str, str]]()
    if passes:
        run(material.command("profile", base), folder / "log", settings=SMALL_TASKS)
        shutil.rmtree(base / RUN_FOLDER)
    with _Network() as network:
        for name in _TEXTS:
            put_folder(network.server, material.folder / name, name)
        for number in range(arguments.runs):
            rng = random.Random(f"{arguments.seed} {number}")
            command = "profile" if not passes or ("profile" in commands and rng.random() < 0.5) else rng.choice(passes)
            if command not in references:
                path = new_store(command, base, folder / f"reference-{command}")
                outcome = run(_arguments(material, command, path), folder / "log", settings=SMALL_TASKS)
                if outcome.status:
                    raise RuntimeError(f"{command} failed undisturbed: {outcome.err.decode()}")
                references[command] = contents(path)
            seed = _Seed(number, command, material, network, folder / f"run-{number}", findings, rng)
            if command != "profile":
                put_folder(network.server, base, f"run-{number}")
            seed.run(references[command])
    return findings


class _Network:
    """An S3 server and a proxy before it, in a process of their own: this one forks, which threads don't survive."""

    def __enter__(self) -> "_Network":
        spawning = multiprocessing.get_context("spawn")
        self._pipe, theirs = spawning.Pipe()
        self._process = spawning.Process(target=_serve, args=(theirs,))
        self._process.start()
        self.server, proxy = self._pipe.recv()
        os.environ.update(ENVIRONMENT, AWS_ENDPOINT_URL=proxy)
        return self

    def tell(self, word: str) -> None:
        """`cut` all connections, go `down` or come `up`."""
        self._pipe.send(word)
        self._pipe.recv()

    def __exit__(self, *_: object) -> None:
        self._process.terminate()
        self._process.join()


def _serve(pipe: Connection) -> None:
    with serving() as server:
        proxy = CuttingProxy(server)
        pipe.send((server, proxy.endpoint))
        while True:
            word = pipe.recv()
            proxy.is_down = {"down": True, "up": False}.get(word, proxy.is_down)
            if word != "up":
                proxy.cut()
            pipe.send(word)


def _arguments(material: Material, command: str, store: object) -> list[object]:
    """The command with its texts in the bucket."""
    name, model, _, *options = material.command(command, Path())
    in_bucket = {material.folder / folder: f"{BUCKET}/{folder}" for folder in _TEXTS}
    return [name, model, store, *(in_bucket.get(option, option) for option in options)]  # type: ignore[call-overload]


class _Seed:
    """One store: disturbed launches, a last one in peace, and what is there then."""

    def __init__(
        self, number: int, command: str, material: Material, network: _Network, folder: Path, findings: Findings,
        rng: random.Random,
    ):  # fmt: skip
        self._prefix = f"run-{number}"
        self._command = command
        self._arguments = _arguments(material, command, f"{BUCKET}/{self._prefix}")
        self._network = network
        self._folder = folder
        self._findings = findings
        self._rng = rng
        self._story: list[str] = []

    def run(self, reference: dict[str, str]) -> None:
        """From nothing to the comparison."""
        for _ in range(self._rng.randint(1, _MOST_DISTURBED)):
            self._disturb(self._rng.choice(_KINDS))
        self._story.append("last launch")
        self._note(self._start("home").finish(_LIMIT_S), {0})
        there = objects(self._network.server, self._prefix)
        for name, content in there.items():
            file = self._folder / "copy" / name
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_bytes(content)
        if differs := difference(contents(self._folder / "copy"), reference):
            self._findings.fail("lost", self._where, f"other than undisturbed: {differs}")
        if left := sorted(name for name in there if name.startswith(".run/")):
            self._findings.fail("objects left behind", self._where, ", ".join(left))
        shutil.rmtree(self._folder)
        self._findings.count("stores")

    def _disturb(self, kind: str) -> None:
        self._story.append(kind)
        self._findings.count(f"launches with {kind}")
        launch = self._start("home")
        launch.wait_ready()
        self._wait(launch, self._rng.uniform(0, 0.3 if kind == "other machine" else 1.5))
        allowed = {0, 2}
        if kind == "cuts":
            for _ in range(self._rng.randint(1, _MOST_CUTS)):
                self._network.tell("cut")
                self._findings.count("cuts")
                self._wait(launch, self._rng.expovariate(4))
        elif kind in ("away", "gone"):
            self._network.tell("down")
            self._wait(launch, self._rng.uniform(0, 3) if kind == "away" else _LIMIT_S)
            self._network.tell("up")
        elif kind == "other machine":
            other = self._start("elsewhere")
            refused = self._note(other.finish(_LIMIT_S), {0, 2}).status == 2
            self._findings.count("refused", int(refused))
        elif not launch.poll():
            os.kill(launch.pid, getattr(signal, kind))
            allowed = {0, 2, -9}
            if kind == "SIGSTOP":
                time.sleep(self._rng.uniform(0, 2))
                os.kill(launch.pid, signal.SIGCONT)
        outcome = self._note(launch.finish(_LIMIT_S), allowed)
        self._findings.count(f"{kind}: ended with {outcome.status}")

    @property
    def _where(self) -> str:
        return f"{self._prefix} ({self._command}): {'; '.join(self._story)}"

    def _start(self, home: str) -> Launch:
        os.environ["NEUROTALLY_HOME"] = str(self._folder / home)
        return start(self._arguments, self._folder / f"log-{home}", SMALL_TASKS)

    def _note(self, outcome: Outcome, allowed: set[int]) -> Outcome:
        expected = ("can't reach s3://", "is being written by", "was written by another run")
        is_refused = self._findings.check(self._where, outcome, allowed, lines=1) and outcome.status == 2
        if is_refused and not any(text in outcome.last_line for text in expected):
            self._findings.fail("refused for another reason", self._where, outcome.last_line)
        return outcome

    def _wait(self, launch: Launch, seconds: float) -> None:
        deadline = time.monotonic() + seconds
        while time.monotonic() < deadline and not launch.poll():
            time.sleep(0.01)
