"""The plan of a corpus whose documents are windows of lines."""

from dataclasses import dataclass, replace

import numpy as np

from neurotally.jobs.plan import CorpusPlan
from neurotally.jobs.worker import Task
from neurotally.profiler.units import Unit
from neurotally.profiler.windows import cut_windows


@dataclass(frozen=True)
class WindowPlan(CorpusPlan):
    """A corpus's windows; those that repeat an earlier one trigger nothing."""

    is_repeat_D: np.ndarray

    def task(self, unit: Unit) -> Task:
        """What a worker needs for one of its units."""
        repeats = unit.first + np.flatnonzero(self.is_repeat_D[unit.first : unit.end])
        return replace(super().task(unit), repeats=repeats)


def plan_windows(plan: CorpusPlan, num_lines: int) -> WindowPlan:
    """Cut the files of a listed corpus into windows."""
    windows = cut_windows(plan.source, plan.manifest, num_lines)
    return WindowPlan(plan.name, plan.source, plan.max_files, windows.manifest, windows.is_repeat_D)
