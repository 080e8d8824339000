"""Functions that tests call in other processes, which have to import them from a module."""

import time

import numpy as np


def observe(collector, batch):
    collector.observe(batch)
    return collector


def infer(layer, x):
    return layer.forward_infer(x)


def batch(index, seconds=0.0):
    """Return a batch of eight channels of different magnitudes."""
    time.sleep(seconds)
    rng = np.random.default_rng(index)
    return (rng.standard_normal((50, 8)) * 2.0 ** rng.integers(-4, 4, 8)).astype(np.float32)


def run_model(connection, model, x):
    """Send the output of a PyTorch model through a connection."""
    import torch

    torch.set_num_threads(1)
    with torch.no_grad():
        connection.send(model(x).numpy())
