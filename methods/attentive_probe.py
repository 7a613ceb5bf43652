"""Attentive probing (arXiv 2506.10178): a learned pooler over the tokens of a frozen encoder, and a classifier.

The protocol is that of the benchmark of efficient probing, for each of its poolers: a batch norm without affine
parameters and a linear layer read what the pooler gives. The poolers are in `layers.poolers`.
"""

from errors import UserError
from methods import classifier, linearprobe
from methods.class_balance import balance
from methods.method import Method
from methods.probe_sweep import variant
from training.run import Run
from training.task import Task


def build(run: Run) -> Task:
    """Build the classifier with a frozen encoder, and a pooler that trains.

    Raises:
        UserError: if the pooler's numbers do not fit the encoder's width, or the patches are averaged instead.
    """
    if run.config.MODEL.GLOBAL_POOL:
        raise UserError("MODEL.GLOBAL_POOL=True: an attentive probe has a pooler of its own; set it to False")
    model = classifier.build_classifier(run, linearprobe.HEAD_STD)
    return linearprobe.build_frozen(run, "attentive_probe", model, [model.pooler, model.head])


METHOD = Method(
    "linearprobe",
    build,
    linearprobe.transform,
    target=classifier.target,
    evaluate=classifier.evaluate_only,
    prepare_source=balance,
    variant=variant,
)
