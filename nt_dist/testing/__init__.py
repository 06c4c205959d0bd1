"""Helpers for tests that need several ranks; used by this project's own tests and open to anyone's."""

from nt_dist.testing.pool import RankError, run_distributed

__all__ = ["RankError", "run_distributed"]
