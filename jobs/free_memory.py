"""What is free of this machine's memory and of its GPUs'."""

import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import psutil
import torch

_FREE_BYTES = "import torch; print(*(torch.cuda.mem_get_info(i)[0] for i in range(torch.cuda.device_count())))"


def free_host_bytes() -> int:
    """What this process can still have of the machine's memory: free or freed when asked for, within its cgroup."""
    on_machine: int = psutil.virtual_memory().available + psutil.swap_memory().free
    try:
        groups = Path("/proc/self/cgroup").read_text()
    except OSError:
        return on_machine
    return min([on_machine, *_left_in_groups(groups, Path("/sys/fs/cgroup"))])


def free_gpu_bytes() -> int | None:
    """Of all GPUs that PyTorch sees; None where there is none."""
    numbers = range(torch.cuda.device_count())
    return sum(torch.cuda.mem_get_info(number)[0] for number in numbers) if numbers else None


def free_bytes_by_gpu() -> list[int]:
    """Of each GPU, asked in another process: in this one it would keep half a gigabyte of each."""
    done = subprocess.run([sys.executable, "-c", _FREE_BYTES], stdout=subprocess.PIPE, text=True, check=True)
    return [int(number) for number in done.stdout.split()]


def _left_in_groups(groups: str, root: Path) -> Iterator[int]:
    """What every control group above a process has left; `groups` as in /proc/self/cgroup, of versions 1 and 2."""
    for line in groups.splitlines():
        _, controllers, path = line.split(":", 2)
        if controllers not in ("", "memory"):
            continue
        top = root / controllers
        limit, used = (
            ("memory.limit_in_bytes", "memory.usage_in_bytes") if controllers else ("memory.max", "memory.current")
        )
        inner = top / path.lstrip("/")
        for folder in [folder for folder in (inner, *inner.parents) if folder.is_relative_to(top)]:
            try:
                left = int((folder / limit).read_text()) - int((folder / used).read_text())
                stat = dict(line.split() for line in (folder / "memory.stat").read_text().splitlines())
            except (OSError, ValueError):  # no limit, or not ours to see
                continue
            yield left + max(
                sum(int(stat.get(f"{of}{kind}_file", 0)) for kind in ("inactive", "active")) for of in ("", "total_")
            )
