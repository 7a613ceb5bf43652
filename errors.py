"""The one exception type for what a user can mend."""


class UserError(ValueError):
    """Something that the user gave is wrong; the message says what, where, and how to mend it.

    The main scripts print it as one line and exit with code 2, the commands for weights with code 1. Every
    other exception is a defect of this project and keeps its traceback.
    """


def printable(text: object, most: int = 200) -> str:
    """Return what a file says in a form that fits into one line of a message and cannot forge another."""
    text = str(text)[: most + 1]
    text = text if len(text) <= most else text[:most] + "..."
    return text if text.isprintable() else ascii(text)[1:-1]
