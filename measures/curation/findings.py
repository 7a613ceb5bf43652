"""What is found in a set, put together: groups of copies, leaks between splits, doubtful labels, outliers, lists."""

import dataclasses

import numpy as np

from measures.curation import duplicates, similar_rows, suspects
from measures.curation.duplicates import Pairs
from measures.curation.images import Images
from measures.curation.suspects import Doubt


@dataclasses.dataclass(frozen=True)
class Group:
    """Images that show the same.

    Attributes:
        members: numbers, ascending.
        kept: the one that is trained on; an image of another split than train where the group has one.
        kind: the loosest of the pairs: a place in `KINDS`.
        cosine, correlation: the smallest of the pairs.
        has_mirrored: some member is the mirror image of another.
    """

    members: list[int]
    kept: int
    kind: int
    cosine: float
    correlation: float
    has_mirrored: bool


@dataclasses.dataclass(frozen=True)
class Findings:
    """All that is known of a set.

    Attributes:
        images: of the set.
        facts: [N] of `image_facts.FACTS`.
        readable: [R] numbers of the images that can be read, ascending; what follows is about these.
        pairs: of images, by their numbers in the set; some are only similar.
        group: [N] the smallest number of an image's group.
        groups: those of more than one image.
        labels: doubtful ones, whose image is a number in the set.
        contradicted: copies with another label than the kept one of their group.
        outliers: numbers, the farthest first.
        typicality: [N] 0 to 1, high where other images are near; 0 for images that cannot be read.
        agreement: share of the true nearest images that were found.
        vote_accuracy: share of the labels that most of the nearest images have, too; None: labels were not looked at.
    """

    images: Images
    facts: np.ndarray
    readable: np.ndarray
    pairs: Pairs
    group: np.ndarray
    groups: list[Group]
    labels: list[Doubt]
    contradicted: list[int]
    outliers: np.ndarray
    typicality: np.ndarray
    agreement: float
    vote_accuracy: float | None

    def leaks(self) -> list[tuple[int, int]]:
        """Return (image of another split, image of train) of the same group."""
        found = []
        for group in self.groups:
            train = [member for member in group.members if self.images.split_name(member) == "train"]
            found += [(other, member) for other in group.members if other not in train for member in train]
        return sorted(found)

    def keep(self, without: np.ndarray) -> np.ndarray:
        """Return the training images to keep: readable, one of each group, and none that another split has.

        Args:
            without: numbers that are left out, too.
        """
        is_kept = np.zeros(len(self.images), bool)
        is_kept[self.readable] = True
        is_kept &= self.images.split == self.images.splits.index("train") if "train" in self.images.splits else True
        for group in self.groups:
            is_kept[[member for member in group.members if member != group.kept]] = False
        is_kept[without] = False
        return np.flatnonzero(is_kept)


def describe(images: Images, facts: np.ndarray, vectors: np.ndarray, pairs: Pairs) -> Findings:
    """Put together what the pairs of copies and the descriptors tell.

    Args:
        facts: [N] of `image_facts.FACTS`.
        vectors: [R, D] of length 1, of the readable images.
        pairs: by places among the readable images.
    """
    readable = np.flatnonzero(facts["problem"] == b"")
    own_group = duplicates.groups(pairs, len(readable))
    chosen = np.flatnonzero(own_group == np.arange(len(readable)))  # one image of each group
    places_of = np.zeros(len(readable), np.int64)
    places_of[chosen] = np.arange(len(chosen))
    rows, count = similar_rows.Rows(vectors[chosen]), suspects.LABEL_NEIGHBOURS
    places, cosines = similar_rows.nearest(rows, count, vectors, left_out=places_of[own_group])
    nearby = np.where(places >= 0, chosen[places], -1)
    far, density = suspects.outliers(cosines[:, : suspects.OUTLIER_NEIGHBOURS])
    doubts, accuracy, labels = [], None, images.labels[readable]
    if len(np.unique(labels[labels >= 0])) > 1:
        probabilities = suspects.votes(labels, nearby, cosines, int(labels.max()) + 1)
        doubts = suspects.doubtful_labels(labels, probabilities)
        accuracy = float((probabilities.argmax(axis=1) == labels)[labels >= 0].mean())
    pairs = pairs._replace(images=readable[pairs.images])
    group = np.arange(len(images))
    group[readable] = readable[own_group]
    found = _groups(images, facts, pairs, group)
    kept = {member: each.kept for each in found for member in each.members}
    return Findings(
        images,
        facts,
        readable,
        pairs,
        group,
        found,
        [doubt._replace(image=int(readable[doubt.image])) for doubt in doubts],
        sorted(member for member, other in kept.items() if _differ(images.labels, member, other)),
        readable[far],
        _spread(density, readable, len(images)),
        similar_rows.agreement(rows, similar_rows.nearest(rows, count)[0]) if not rows.is_exact else 1.0,
        accuracy,
    )


def _differ(labels: np.ndarray, one: int, other: int) -> bool:
    return labels[one] >= 0 and labels[other] >= 0 and labels[one] != labels[other]


def _spread(values: np.ndarray, places: np.ndarray, count: int) -> np.ndarray:
    spread = np.zeros(count, np.float32)
    spread[places] = values
    return spread


def _groups(images: Images, facts: np.ndarray, pairs: Pairs, group: np.ndarray) -> list[Group]:
    """Return the groups of more than one image, by their smallest member."""
    order = np.argsort(group, kind="stable")
    parts = np.split(order, np.flatnonzero(np.diff(group[order])) + 1)
    copies = pairs.take(pairs.kind >= 0)
    owner = group[copies.images[:, 0]]
    by_owner = np.argsort(owner, kind="stable")
    firsts, lasts = (
        np.searchsorted(owner[by_owner], [part[0] for part in parts], side=side) for side in ("left", "right")
    )
    found = []
    for part, first, last in zip(parts, firsts, lasts, strict=True):
        if len(part) > 1:
            own = copies.take(by_owner[first:last])
            values = float(own.cosine.min()), float(own.correlation.min()), bool(own.is_mirrored.any())
            found.append(Group(part.tolist(), _kept(images, facts, part), int(own.kind.max()), *values))
    return sorted(found, key=lambda each: each.members[0])


def _kept(images: Images, facts: np.ndarray, members: np.ndarray) -> int:
    """Return the image of a group to keep: of another split than train, else the largest, by pixels, then by bytes."""

    def rank(number: int) -> tuple:
        own = facts[number]
        size = int(own["width"]) * int(own["height"])
        return images.split_name(number) == "train", -size, -int(own["bytes"]), number

    return min(members.tolist(), key=rank)
