"""The ResNets as the rest of the package sees them."""

from nt_dist.config.family import Family, Headline, gain
from nt_dist.data.settings import without_folders
from nt_dist.images import settings as images
from nt_dist.images.published import PUBLISHED
from nt_dist.images.severities import CORRUPTIONS
from nt_dist.resnet import settings
from nt_dist.resnet.activations import activations
from nt_dist.resnet.names import trail_problems, twin
from nt_dist.resnet.weights import weights


class ResNet(Family):
    """ResNets (He et al., arXiv 1512.03385) and Wide ResNets (Zagoruyko, Komodakis, arXiv 1605.07146) on pictures."""

    name, task = "resnet", "image-classification"
    sample = "picture"
    reads_bytes = True
    sections = {"model": settings.Model, "data": images.Data}  # noqa: RUF012
    rules = settings.RULES
    recipes = settings.RECIPES
    input_layer, output_layer = "stem", "classifier"
    compiles = False
    wants_accuracy = True
    corruptions, samples_name = CORRUPTIONS, "pictures"
    alike = ("model.image_size", "model.num_classes", "data.mean", "data.std")
    ignored, paths = staticmethod(images.ignored_settings), staticmethod(images.paths)
    weights, activations = staticmethod(weights), staticmethod(activations)
    twin, trail_problems = staticmethod(twin), staticmethod(trail_problems)

    def hidden_size(self, config):
        """See :meth:`Family.hidden_size`: the channels of the last blocks."""
        return (config.model.width << (len(config.model.depths) - 1)) * config.model.expansion

    def divided_by_tensor(self, config):
        """Nothing: a rule refuses it."""
        return {}

    def batch_unit(self, config):
        """A batch norm's pictures stay together."""
        return config.model.norm_batch

    def unified(self, settings):
        """Pictures may lie in another folder."""
        return without_folders(settings)

    def positions(self, config):
        """One: a picture has one class."""
        return 1

    def input_shape(self, config):
        """Height, width and colours."""
        return config.model.image_size, config.model.image_size, 3

    def num_outputs(self, config):
        return config.model.num_classes

    def layers(self, config, make, place):
        from nt_dist.resnet.layers import layers

        return layers(config, make, place)

    def figures(self, means):
        """See :meth:`Family.figures`.

        Returns:
            accuracy_trails: share of pictures that each trail is right about.
            accuracy_ensemble_prob, accuracy_ensemble_logit: of the mean of probabilities and the mean of logits.
            nll_trails, nll_ensemble_prob, nll_ensemble_logit: mean negative log-likelihoods in nats.
            disagreement: as EnsembleSums.means has it.
            ensemble_gain: the mean of nll_trails minus nll_ensemble_prob.
            pictures: sum of the weights.
        """
        found = {}
        for name, kind in (("accuracy", means["accuracy"]), ("nll", means["nll"])):
            found[f"{name}_trails"] = kind["trails"]
            found |= {f"{name}_ensemble_{how}": kind[how] for how in ("prob", "logit")}
        found["disagreement"] = means["disagreement"]
        return {**found, "ensemble_gain": self.headline(found).gain, "pictures": means["count"]}

    def headline(self, figures):
        """See :meth:`Family.headline`: accuracy."""
        ensembles = figures["accuracy_ensemble_prob"], figures["accuracy_ensemble_logit"]
        nats = gain(figures["nll_trails"], figures["nll_ensemble_prob"])
        return Headline("accuracy", figures["accuracy_trails"], *ensembles, False, ".2%", self.sample, nats)

    def published(self, config):
        return PUBLISHED[config.data.benchmark]

    def foreign(self):
        from nt_dist.resnet.foreign import Dense, Exported

        return [Dense, Exported]

    def open_data(self, config, is_writer, exchange):
        from nt_dist.images.opening import open_data

        return open_data(config, is_writer, exchange)

    def open_other_data(self, config, path, exchange, state):
        from nt_dist.images.opening import open_other

        return open_other(config, path, exchange, state.extra.get("classes", ()))

    def corrupted(self, data, kind, level):
        from nt_dist.images.samples import CorruptedSamples

        samples = CorruptedSamples(data.validation, kind, int(level))
        return f"the same pictures {self.corruptions.kinds[kind].format(level)}", samples
