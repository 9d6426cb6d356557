"""The one kind of error that is meant for people: cause, numbers and remedy in a single line."""


class UserError(ValueError):
    """Something the caller can put right; its message is one line that says how."""


class CutTextWarning(UserWarning):
    """Texts are longer than what a checkpoint reads of them; the rest changes no vector."""


class MissingPackageError(UserError, ImportError):
    """An optional package is absent; the message carries the command that installs it."""
