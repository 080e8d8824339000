"""Type annotations at run time."""

import typing


def plain(hint):
    """Return a type; an alias that the statement `type` made, as in newer NumPys, gives the type it stands for."""
    alias, arguments = typing.get_origin(hint) or hint, typing.get_args(hint)
    if not hasattr(alias, "__value__"):
        return hint
    return plain(alias.__value__[arguments] if arguments else alias.__value__)
