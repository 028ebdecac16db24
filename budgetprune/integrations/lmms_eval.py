"""lmms-eval's own llava_hf, pruned: lmms_eval --model budgetprune_llava_hf --model_args pretrained=..,method=..,keep=..

llava_hf takes no argument that it does not know, so ours are taken out first. It also answers "" where generate()
raises, which would make an error of ours look like a method that answers badly; here every error ends the run.
"""

import inspect
from contextlib import contextmanager
from functools import wraps

from accelerate import PartialState
from lmms_eval.models.chat.llava_hf import LlavaHf as LlavaHfChat
from lmms_eval.models.simple.llava_hf import LlavaHf

from .arguments import check_arguments, prune_as_asked

THEIRS = frozenset(inspect.signature(LlavaHf.__init__).parameters) - {"self", "kwargs"} | {"max_batch_size"}


class _Failure(BaseException):
    """Carries an error past `except Exception`. BaseException is what llava_hf does not catch."""


class _Pruned:
    """What both forms of llava_hf gain.

    method, keep, and the method's options as in budgetprune.prune; or pruner: a folder that save_pretrained wrote.
    """

    def __init__(self, method=None, keep=None, pruner=None, **arguments):
        theirs = {name: arguments.pop(name) for name in THEIRS & set(arguments)}
        theirs.pop("max_batch_size", None)  # lmms-eval passes it to every model; llava_hf has no use for it
        check_arguments(method, pruner, arguments)
        if not theirs.get("device_map") and PartialState().num_processes == 1:
            theirs["device_map"] = theirs.get("device", "cuda")  # llava_hf's default "" is refused by transformers 5
        super().__init__(**theirs)
        self.pruning = prune_as_asked(self.model, method, keep, pruner, arguments)

    def generate_until(self, requests):
        with errors_surface(self.model):
            return super().generate_until(requests)

    def loglikelihood(self, requests):
        # llava_hf reads the logits at the columns of its own prompt, where a pruned model has others.
        raise ValueError("a pruned llava_hf scores generate_until tasks, got loglikelihood: it would read logits of "
                         "other tokens; take the task's generative form")


@contextmanager
def errors_surface(model):
    """Within, what model.generate raises cannot be caught by `except Exception`; outside it is the error itself."""
    generate, own = model.generate, "generate" in vars(model)

    @wraps(generate)
    def loud(*arguments, **options):
        try:
            return generate(*arguments, **options)
        except Exception as error:
            raise _Failure from error

    model.generate = loud
    try:
        yield
    except _Failure as failure:
        raise failure.__cause__ from failure.__cause__.__cause__
    finally:
        if own:
            model.generate = generate
        else:
            del model.generate


class PrunedLlavaHf(_Pruned, LlavaHf):
    """`--force_simple`: tasks that give one text with <image> in it."""


class PrunedLlavaHfChat(_Pruned, LlavaHfChat):
    """Tasks that give messages; what lmms-eval takes where it has both."""


class KeptLlavaHf(LlavaHfChat):
    """llava_hf as it is, for several runs: lmms-eval takes the model out of it at the end of the first."""

    def clean(self) -> None:
        self.accelerator.free_memory()
