"""The package's own exception."""


class InvalidArgumentError(ValueError):
    """An argument of the right type has a wrong value or shape.

    The message says what was expected and what came.  Wrong types raise `TypeError`.
    """

    __module__ = "qatcore"  # where people find it, in tracebacks too
