"""The one exception a user of the commands is meant to read."""


class InputError(ValueError):
    """A mistake in what the user gave: a file, a value, a config, a missing package.

    The message names it and says what to do. Commands print the message alone, without a traceback,
    and exit with 2; any other exception is a defect and keeps its traceback.
    """
