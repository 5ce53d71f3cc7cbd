"""The errors a user can mend, apart from those that are bugs or broken machines."""


class InputError(ValueError):
    """The user's input or disk is at fault. One line: what was expected, what came, what to do.

    The command line prints it as it is and exits with status 2.
    """


class UnsupportedModelError(InputError):
    """The model has no feed-forward neurons where we know how to read them; names the layer."""


def first_line(error: BaseException) -> str:
    """The first line of an error's message that says something, or its type."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[0] if lines else type(error).__name__
