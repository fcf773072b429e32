"""The exceptions a user may cause; the command line turns each into one sentence and an exit code."""


class UserError(Exception):
    """Bad input: one sentence that says what is wrong, why, and what to do next.

    The command line prints the message and exits with code 2; library callers catch it like any exception.
    """


class Interrupted(Exception):
    """A signal stopped a run after its state was saved; the message says how to go on, ``signum`` the signal."""

    def __init__(self, message: str, signum: int) -> None:
        super().__init__(message, signum)  # both: an exception that crosses a process is rebuilt from its args
        self.signum = signum

    def __str__(self) -> str:
        return str(self.args[0])
