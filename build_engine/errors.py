"""What ends a command early: each error is one sentence for the user and an exit code."""

from __future__ import annotations


class BuilderError(Exception):
    """Base of the errors shown to the user; the message is one sentence."""

    exit_code = 1


class UserMistake(BuilderError):
    """The command cannot be carried out as asked: unsupported model, existing output, no disk, bad option."""

    exit_code = 2


class StageFailure(BuilderError):
    """A step failed in a way the user did not cause; the message names the step and where its log is."""


class AccuracyFailure(BuilderError):
    """The artifact is whole but too far from its source."""


class Interrupted(BaseException):
    """SIGINT or SIGTERM arrived. Not an Exception, so that no library's ``except Exception`` swallows it."""

    def __init__(self, signal_number: int) -> None:
        super().__init__(f"signal {signal_number}")
        self.exit_code = 128 + signal_number
