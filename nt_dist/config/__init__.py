"""Settings: read, checked and explained without torch."""

from nt_dist.config.load import parse_command_line
from nt_dist.config.settings import Config

__all__ = ["Config", "parse_command_line"]
