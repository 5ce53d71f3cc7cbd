"""The model that a run asks for, which every worker loads."""

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from neurotally.jobs.engines.device_group import DeviceGroup
    from neurotally.profiler.model.load import LoadedModel
    from neurotally.profiler.model.outline import Outline


@dataclass(frozen=True)
class ModelConfig:
    """Which model to load, and where."""

    spec: str
    """MODEL[@REVISION]."""
    device: str = "auto"
    dtype: str = "auto"
    trust_remote_code: bool = False
    devices: int = 1
    """Those that hold it together, a process for each."""
    fused: bool = False
    """Its norms and rotary embeddings, as far as there are kernels: see `model.fused`."""
    random_init: int | None = None
    """Seed of fresh weights in place of its own, which `untrained_model` writes before a worker loads them."""

    def load(self) -> "LoadedModel | DeviceGroup":
        """The model, verified: in this process, or in one for each of several devices."""
        if self.devices == 1:
            return self.load_here()
        from neurotally.jobs.engines.device_group import DeviceGroup

        return DeviceGroup(self)

    def load_here(self, sharded: bool = False) -> "LoadedModel":
        """The model, or this process's part of one `sharded`; on a CPU the process keeps the memory that it frees."""
        from neurotally.profiler.model.allocation import reuse_freed_memory
        from neurotally.profiler.model.load import load_model, resolve_device

        if resolve_device(self.device) == "cpu":
            reuse_freed_memory()
        return load_model(
            self.spec, self.device, self.dtype, self.trust_remote_code, sharded=sharded, fused=self.fused
        )  # fmt: skip

    def outline(self) -> "Outline":
        """What the model is, from its config alone."""
        from neurotally.profiler.model.outline import outline_model

        return outline_model(self.spec, self.device, self.dtype, self.trust_remote_code)
