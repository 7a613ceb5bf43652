"""The one exception type for what a user can mend."""


class UserError(ValueError):
    """Something that the user gave is wrong; the message says what, where, and how to mend it.

    The entry scripts print it as one line and exit with code 2. Every other exception is a
    defect of this project and keeps its traceback.
    """
