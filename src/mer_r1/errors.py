"""The one exception that users are meant to see: an input they can put right."""


class UserError(ValueError):
    """An expected error. Its message is one line: what was wrong, where, and what was expected.

    The command line prints the message without a traceback and exits with status 2.
    """
