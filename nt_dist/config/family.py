"""What a model family tells the rest of the package: the only door to a family, and what a new one has to write.

Its object imports no torch, so that configs are checked before anything slow is loaded; methods import what they need.
"""

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, ClassVar, NamedTuple

from nt_dist.config.keys import Rule
from nt_dist.config.settings import Config
from nt_dist.errors import ConfigError


@dataclass(frozen=True)
class Headline:
    """The figure by which people compare models of a family."""

    name: str  # for logs, tables and axes, as in "perplexity"
    trails: Sequence[float]
    prob: float  # of the mean of the trails' probabilities
    logit: float  # of the softmax of the mean of their logits
    lower_is_better: bool = True
    form: str = ",.2f"  # how a value is written, for ``format``
    sample: str = "token"  # what the figure is a mean over, one of it
    gain: float = math.nan  # nats a sample by which the mean of probabilities is better than a trail; below 0: worse

    @property
    def samples(self) -> str:
        """Several of it; figures have their number under this name."""
        return f"{self.sample}s"

    @property
    def mean(self) -> float:
        """Mean over the trails: what one at random is worth."""
        return sum(self.trails) / len(self.trails)

    def text(self, value: float) -> str:
        """Write a value of this figure."""
        return format(value, self.form) if abs(value) < 1e6 else f"{value:.3g}"


def gain(trails: Sequence[float | None], together: float | None) -> float:
    """What averaging is worth, from negative log-likelihoods; None stands for what is not finite."""
    *values, of_all = (math.nan if each is None else each for each in (*trails, together))
    return sum(values) / len(values) - of_all


class Corruptions(NamedTuple):
    """Ways to corrupt samples that an evaluation may ask for."""

    kinds: Mapping[str, str]  # what each does to them, {:.3g} being its level
    level: str  # what a level is called, as in "share"
    rule: Rule  # what a level must be
    default: float  # the level where none is given
    levels: tuple[float, ...]  # those of a table of all corruptions


@dataclass(frozen=True)
class LayerActivations:
    """Bytes of one layer for one position of a sample and one trail, on one of ``parallel.tensor`` ranks; for plans."""

    input: int  # what it reads; backward needs it too
    output: int  # what it gives; of the last layer the logits that are held here
    inner: int  # what backward needs besides
    all_reduced: int = 0  # hidden states that the tensor ranks add up in it, forward and backward together
    all_gathered: int = 0  # whole ones, where each holds its share of the positions
    reduce_scattered: int = 0
    gathered: int = 0  # of a whole one that stands beside what is kept
    recomputed: int = 0  # gradients alive at once where it is computed again in backward, beside what that needs


class Twin(NamedTuple):
    """A model as transformers has it."""

    settings: dict[str, Any]  # of config.json: "model_type", or "auto_map" with classes in nt_dist/export/hf's files
    key: Callable[[Config, str, int], str]  # its name of a weight or statistic, by config, our name, trail's number


@dataclass(frozen=True)
class Family(ABC):
    """One model family; all objects of a class are equal."""

    name: ClassVar[str]  # as model.family gives it
    task: ClassVar[str]  # what its models do, as Hugging Face names it: "text-generation", "image-classification"
    sample: ClassVar[str] = "token"  # what losses and figures are means over, one of it
    sections: ClassVar[Mapping[str, type]]  # its own of a config: "data", and "model" with num_layers residual blocks
    reads_bytes: ClassVar[bool] = False  # or numbers of the classes that it gives: the pieces of a vocabulary
    input_layer: ClassVar[str]  # that reads the samples, as weights' specs name it: train.lr_embedding is its rate
    output_layer: ClassVar[str]  # that makes the logits: train.lr_output is its rate
    rules: ClassVar[tuple[tuple[tuple[str, ...], Callable[[Config], Iterator[str]]], ...]]
    """Rules over several settings: the keys that one reads, and what yields a message for each thing that is wrong."""
    recipes: ClassVar[Mapping[str, Mapping[str, Any]]] = {}  # by train.recipe: values for what a config leaves out
    compiles: ClassVar[bool] = True  # a pass through its layers can be one graph
    wants_accuracy: ClassVar[bool] = False  # its figures have shares of right answers: one more pass over the logits

    # -- what the config asks, without torch -------------------------------------------------------------------------

    @abstractmethod
    def hidden_size(self, config: Config) -> int:
        """Width of the hidden states, from which DeepSpeed's bucket sizes are made where a JSON says "auto"."""

    @abstractmethod
    def divided_by_tensor(self, config: Config) -> dict[str, int]:
        """Sizes that ``parallel.tensor`` has to divide, by the key that sets each."""

    def ignored(self, config: Config) -> Iterator[str]:
        """Messages of :func:`nt_dist.config.rules.ignored` on its own settings that were given and change nothing."""
        return iter(())

    def paths(self, config: Config) -> list[tuple[str, str]]:
        """Files, folders and patterns that its settings name: key and path of each."""
        return []

    def needed_paths(self, config: Config) -> list[tuple[str, str]]:
        """Those of :meth:`paths` without which a run cannot go on: none of a corpus that has been prepared."""
        return self.paths(config)

    alike: ClassVar[tuple[str, ...]] = ()
    """Settings in which models must agree that read the same samples and give the same classes, beside their data."""

    def unified(self, settings: dict[str, Any]) -> dict[str, Any]:
        """Values by section.key, with one spelling for those that say the same: a resume compares them."""
        return settings

    # -- the model ---------------------------------------------------------------------------------------------------

    @abstractmethod
    def weights(self, config: Config) -> list[Any]:
        """The :class:`nt_dist.sparsity.spec.WeightSpec` of every weight, in the order in which the layers use them.

        Their densities are 1: model/weights.py spreads the config's density over them. Their layers are the model's, so
        every layer has a weight; the trails part before the first layer whose weights are theirs.
        """

    def weight_names(self, config: Config) -> list[str]:
        """Names of all weights, as ``sparsity.exempt`` may name them; also where shards do not divide them."""
        whole = replace(config, sparsity=replace(config.sparsity, topology_shards=1))
        return [spec.name for spec in self.weights(whole) if spec.role != "statistic"]

    @abstractmethod
    def positions(self, config: Any) -> int:
        """Positions of one sample's logits: the tokens of a sequence, 1 of a picture."""

    def input_shape(self, config: Any) -> tuple[int, ...]:
        """Shape of one sample's input."""
        return (self.positions(config),)

    @abstractmethod
    def num_outputs(self, config: Config) -> int:
        """Logits of a position, without padding: the pieces of a vocabulary, the classes of pictures."""

    def batch_unit(self, config: Config) -> int:
        """Samples of a micro-batch that have to stay together on one rank."""
        return 1

    @abstractmethod
    def activations(self, config: Any, layer: str) -> LayerActivations:
        """What a layer holds and exchanges."""

    def extra_flops(self, config: Any, layer: str) -> int:
        """Forward operations of one sample position and trail in a layer, beyond its weights' products."""
        return 0

    @abstractmethod
    def layers(self, config: Config, make: Callable[[str], Any], place: Any) -> dict[str, Callable[[], Any]]:
        """One function per layer that makes it, by the layer's name; ``make`` makes a weight by its name. Where hidden
        states are not one tensor there is also one for "fork" (model/trails.py's FORK)."""

    @abstractmethod
    def figures(self, means: Mapping[str, Any]) -> dict[str, Any]:
        """The figures of :meth:`nt_dist.evaluation.evaluate.EnsembleSums.means`, under the names that files have."""

    @abstractmethod
    def headline(self, figures: Mapping[str, Any]) -> Headline:
        """Read the headline out of :meth:`figures`, perhaps from a run's metrics."""

    def published(self, config: Config) -> Sequence[str]:
        """Sentences on what others reached on a run's data, with their sources."""
        return ()

    # -- the same in other programs ----------------------------------------------------------------------------------

    @abstractmethod
    def twin(self, config: Config, one_trail: bool) -> Twin:
        """The ensemble in transformers, by a modeling file of ours, or trunk and one trail as what they are there."""

    @abstractmethod
    def trail_problems(self, config: Config) -> Iterator[str]:
        """Messages on why trunk and one trail are no model that transformers has."""

    @abstractmethod
    def foreign(self) -> list[type]:
        """The layouts that weights can be taken from: subclasses of :class:`nt_dist.model.foreign.Foreign`."""

    # -- its data ----------------------------------------------------------------------------------------------------

    corruptions: ClassVar[Corruptions]  # what ``corrupted`` can do
    samples_name: ClassVar[str] = "sequences"  # what several samples are called; ``sample`` names their positions

    def continued(self, config: Config, state: Any, run: Path, resuming: bool) -> Config:
        """A run's config with the data that it was trained on so far, where that lies elsewhere now; ``state`` and
        ``run`` as :meth:`tokenizer` takes them.

        DataError if the run is ``resuming`` on what is seen to be other data, without ``run.allow_schedule_change``.
        """
        return config

    @abstractmethod
    def open_data(self, config: Config, is_writer: bool, exchange: Callable[[Callable[[], Any]], Any]) -> Any:
        """A run's :class:`nt_dist.data.samples.OpenData`; DataError where something cannot be read.

        ``exchange`` runs what one rank has to prepare, and gives its result, or raises its error, on all; the writer
        reports what was opened.
        """

    @abstractmethod
    def open_other_data(
        self, config: Config, path: str, exchange: Callable[[Callable[[], Any]], Any], state: Any
    ) -> Any:
        """Another file, folder or pattern, read as the run's own data; ``state`` as :meth:`tokenizer` takes it."""

    def tokenizer(self, config: Config, state: Any, run: Path, prepared: Path | None, given: Path | None) -> Any:
        """What the texts of a run were read with, told from any other by its hash; None where there are no texts.

        ``state`` is the TrainingState of the run's checkpoint, ``run`` its folder; ``prepared`` and ``given`` say where
        the prepared texts and the tokenizer are now: ConfigError if there are no texts, DataError if it is another.
        """
        if given or prepared:
            key = "--tokenizer" if given else "--prepared"
            raise ConfigError([f"{key} {given or prepared}: model.family = {self.name!r} reads no texts"])

    @abstractmethod
    def corrupted(self, data: Any, kind: str, level: float) -> tuple[str, Any]:
        """What to call corrupted samples, and the ``validation`` of opened data, each sample corrupted."""
