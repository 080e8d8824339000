"""Annotations at run time."""

import typing


def plain(hint):
    """Return a type, and what it stands for if it is an alias by the statement `type`, as newer NumPys have."""
    alias, arguments = typing.get_origin(hint) or hint, typing.get_args(hint)
    if not hasattr(alias, "__value__"):
        return hint
    return plain(alias.__value__[arguments] if arguments else alias.__value__)
