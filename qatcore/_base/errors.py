"""The package's own exception."""


class InvalidArgumentError(ValueError):
    """An argument of the right type has a wrong value or shape.

    The message says what was expected and what came.  A wrong type raises `TypeError` instead.
    """

    __module__ = "qatcore"  # the public name, also in tracebacks
