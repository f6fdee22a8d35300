"""The one exception that is rnnfast's own; shapes raise ValueError, dtypes and kinds TypeError."""


class UnsupportedError(NotImplementedError):
    """The chosen backend cannot do what was asked.

    The message names the option and the backends that can. Nothing falls back in silence.
    """
