"""The one kind of error that is meant for people: cause, numbers and remedy in a single line."""

LONGEST = 1200  # characters of a message: what a file or a caller gave is part of it, whatever its size


class UserError(ValueError):
    """Something the caller can put right; its message is one line that says how."""

    def __init__(self, message: str) -> None:
        half = LONGEST // 2
        super().__init__(message if len(message) <= LONGEST else f"{message[:half]} ... {message[-half:]}")


class CutTextWarning(UserWarning):
    """Texts are longer than what a checkpoint reads of them; the rest changes no vector."""


class MissingPackageError(UserError, ImportError):
    """An optional package is absent; the message carries the command that installs it."""
