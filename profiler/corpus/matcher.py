"""The process that matches regular expressions; see `neurotally.profiler.corpus.matches`.

It reads (expression, flags, texts, seconds) from stdin and writes, for each text, the characters of its matches that
aren't empty: first, one past the last, and so on. Nothing in Python can stop `re` at work, so the system's timer does:
SIGPROF ends the process. Run as a file, and so imports nothing of ours.
"""

import pickle
import re
import signal
import sys
import warnings
from array import array


def main() -> None:
    """Answer until stdin ends."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for whoever asks
    signal.signal(signal.SIGPROF, signal.SIG_DFL)
    warnings.simplefilter("ignore")  # of expressions: whoever asks has compiled them before
    while True:
        try:
            expression, flags, texts, limit_s = pickle.load(sys.stdin.buffer)
        except EOFError:
            return
        pattern = re.compile(expression, flags)
        found = []
        for text in texts:
            signal.setitimer(signal.ITIMER_PROF, limit_s)
            spans = array("q")
            for match in pattern.finditer(text):
                if match.end() > match.start():
                    spans.extend(match.span())
            found.append(spans)
        signal.setitimer(signal.ITIMER_PROF, 0)
        pickle.dump(found, sys.stdout.buffer)
        sys.stdout.buffer.flush()


if __name__ == "__main__":
    main()
