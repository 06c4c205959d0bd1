"""What every test of this folder is given."""

import logging

import pytest

from nt_dist.messages import LOGGER


@pytest.fixture(autouse=True)
def own_logging():
    """Leaves the loggers as they were: a command that a test runs sets their levels, and others read what is logged."""
    kept = [(logger, logger.level, logger.handlers[:], logger.propagate) for logger in (logging.getLogger(), LOGGER)]
    yield
    for logger, level, handlers, propagate in kept:
        logger.setLevel(level)
        logger.handlers[:] = handlers
        logger.propagate = propagate
