"""How a process of ours starts."""

import atexit
import gc


def import_pytorch() -> None:
    """Import PyTorch, transformers and what of ours needs them, without looking for garbage meanwhile.

    They make a million objects, which stay. Python would look through them again and again, which takes a fifth of the
    time; nor are they looked through later. In a process that isn't ours garbage is its owner's matter.
    """
    gc.disable()
    try:
        import neurotally.profiler.passes.worker  # noqa: F401

        gc.freeze()
        atexit.register(gc.unfreeze)  # else libraries that look for leaks at the end would tell of some
    finally:
        gc.enable()
