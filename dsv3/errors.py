"""Everything that dsv3 raises on a user's mistake.

Each message says what was found, what was expected and what to do about it. ``assert`` is kept for invariants of
our own. The command line prints the message without a traceback.
"""


class Dsv3Error(Exception):
    """Base class: catch this to catch every error that a user can cause."""


class ConfigError(Dsv3Error):
    """A configuration is unreadable, has an unknown key, or its fields contradict each other."""


class CheckpointError(Dsv3Error):
    """A checkpoint is missing, damaged, incomplete, or of another architecture."""


class RequestError(Dsv3Error):
    """A request to generate cannot be served: bad sampling values, an empty or too long prompt, an absent device."""


class CapacityError(Dsv3Error):
    """The request is valid but does not fit: too few cache pages, too little memory or disk."""
