"""The error that a user reads: what was wrong, with which value, and what to do about it."""


class HRMedSegError(RuntimeError):
    """Something that the user can mend. Carries one message only, so that it survives pickling between processes."""
