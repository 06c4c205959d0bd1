"""The LLaMA as the rest of the package sees it."""

from nt_dist.config.family import Family
from nt_dist.llama import settings
from nt_dist.text.settings import Data


class Llama(Family):
    """LLaMAs (Touvron et al., arXiv 2302.13971) on text."""

    name = "llama"
    sections = {"model": settings.Model, "data": Data}  # noqa: RUF012
    rules = settings.RULES

    def weight_names(self, config):
        """See :meth:`Family.weight_names`."""
        return settings.weight_names(config)

    def weights(self, config):
        """See :meth:`Family.weights`."""
        from nt_dist.llama.weights import weights

        return weights(config)

    def layers(self, config, make, place):
        """See :meth:`Family.layers`."""
        from nt_dist.llama.layers import layers

        return layers(config, make, place)
