"""Start a process of ours: import PyTorch with the garbage collector off."""

import atexit
import gc


def import_pytorch() -> None:
    """Import PyTorch, transformers and what of ours needs them with the garbage collector off.

    They make a million objects, which stay. The collector would go through them again and again, which takes a fifth of
    the time; later it leaves them out. In a process that isn't ours the collector is its owner's matter.
    """
    gc.disable()
    try:
        import neurotally.profiler.passes.worker  # noqa: F401

        gc.freeze()
        atexit.register(gc.unfreeze)  # else libraries that look for leaks at the end would report some
    finally:
        gc.enable()
