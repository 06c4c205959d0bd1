"""Pictures: which draws, labels and contents belong to a sample."""

from tests.mutations.mutation import Mutation

IMAGES = [
    Mutation(
        "a crop is drawn for the picture, not for the global sample number",
        "draws = uniform(self.seed, number, of)",
        "draws = uniform(self.seed, index, of)",
        "tests/unit/images/test_samples.py::test_a_drawn_picture_is_shifted_and_mirrored_as_its_number_says",
    ),
    Mutation(
        "a partner is cropped as the first picture is",
        'number, "partner")',
        'number, "picture")',
        "tests/unit/images/test_samples.py::test_a_mixed_sample_is_made_from_its_own_number_alone",
    ),
    Mutation(
        "what is cut off from a part counts as the partner's",
        "return found, 1 - (bottom - top) * (right - left) / side**2",
        "return found, share",
        "tests/unit/images/test_augment.py::test_cutmix_puts_in_a_square_and_counts_what_is_left",
    ),
    Mutation(
        "all pictures are corrupted by the same draws",
        "(_SEED, list(KINDS).index(kind), severity, number)",
        "(_SEED, list(KINDS).index(kind), severity)",
        "tests/unit/images/test_corruptions.py::test_what_is_random_follows_from_the_samples_number",
    ),
    Mutation(
        "labels of validation are numbers of its own classes",
        "replace(self, labels=table[self.labels], classes=classes)",
        "self",
        "tests/unit/images/test_opening.py::test_validation_has_the_labels_of_training_by_the_names_of_classes",
    ),
    Mutation(
        "kinds and severities follow one another",
        "order = np.lexsort((of, places))",
        "order = np.lexsort((places, of))",
        "tests/unit/images/test_robustness.py::test_arrays_are_read_by_kind_and_severity_in_turns",
    ),
    Mutation(
        "a folder's classes are taken for all there are",
        "among=among if is_part else ()",
        "among=()",
        "tests/unit/images/test_robustness.py::test_some_of_the_classes_are_named_and_all_of_them_are_not",
    ),
    Mutation(
        "a digest leaves out the contents",
        'found.update(len(raw).to_bytes(8, "little") + raw)',
        "pass",
        "tests/unit/images/test_opening.py::test_a_digest_tells_pictures_and_labels_apart",
    ),
    Mutation(
        "broken pictures of an evaluation are not counted",
        "            self.broken.add(index, error)\n            return self.blank()",
        "            return self.blank()",
        "tests/unit/images/test_samples.py::test_a_broken_picture_is_refused",
    ),
]
