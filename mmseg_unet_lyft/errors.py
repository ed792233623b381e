"""The one exception a user of the commands is meant to read, and text made fit for a terminal."""


class InputError(ValueError):
    """A mistake in what the user gave: a file, a value, a config, a missing package.

    The message names it and says what to do. Commands print the message alone, without a traceback,
    and exit with 2; any other exception is a defect and keeps its traceback.
    """


def printable(text: str, keep: str = '') -> str:
    """Text without control characters or surrogates, which a terminal would act on or refuse.

    Args:
        text: With names of files in it, say.
        keep: Control characters to leave as they are.
    """
    return ''.join(one if one.isprintable() or one in keep else ascii(one)[1:-1] for one in text)
