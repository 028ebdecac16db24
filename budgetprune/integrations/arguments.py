"""What a host's user says about pruning: a method with its options, or a folder with a saved pruner."""

import budgetprune


def check_arguments(method, pruner, options: dict) -> None:
    """Before a model is loaded: that it is one of the two, and that options come with a method."""
    if (method is None) == (pruner is None):
        raise ValueError(f"one of method and pruner must be given, got method={method!r} and pruner={pruner!r}")
    if pruner is not None and options:
        raise ValueError(f"a pruner brings its options along, got {sorted(options)} beside pruner={pruner!r}")


def prune_as_asked(model, method, keep, pruner, options: dict) -> "budgetprune.Pruning":
    """budgetprune.prune(model, method, keep=keep, **options), or what is saved in the folder `pruner`."""
    check_arguments(method, pruner, options)
    if pruner is not None:
        return budgetprune.from_pretrained(model, pruner, keep=keep)
    return budgetprune.prune(model, method, keep=keep, **options)
