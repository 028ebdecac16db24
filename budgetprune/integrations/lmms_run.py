"""lmms-eval as `budgetprune eval` asks it: one llava_hf, loaded once, pruned anew for every cell.

The errors of its generate() end the run, as they do in the plugin; see lmms_eval.py.
"""

from argparse import Namespace
from importlib.util import find_spec
from pathlib import Path

MMBENCH_ROTATIONS = 10**6  # a question's rotations have its index plus multiples of this


def require_lmms_eval() -> None:
    """ValueError: lmms-eval is not installed."""
    if find_spec("lmms_eval") is None:
        raise ValueError("tasks that begin with lmms: need lmms-eval, which is not installed: pip install "
                         "lmms-eval==0.7.3")


class LmmsEval:
    """lmms-eval around a LLaVA, LLaVA-NeXT or LLaVA-OneVision of transformers.

    pretrained: folder or name on the hub. device: where it runs. out: folder of what lmms-eval writes itself.
    include_path: folder with tasks of one's own. half: in the precision it was saved in, else float32.
    """

    def __init__(self, pretrained: str, device: str, out, include_path=None, half: bool = True):
        require_lmms_eval()
        from lmms_eval.tasks import TaskManager

        from .lmms_eval import KeptLlavaHf

        self.out, self.include_path = Path(out), include_path
        self.host = KeptLlavaHf(pretrained=pretrained, device=device, device_map=device,
                                dtype="auto" if half else "float32")
        self.model = self.host.model.eval()
        self.tasks = TaskManager("ERROR", include_path=None if include_path is None else str(include_path))

    def size(self, task: str) -> int:
        """Questions of a task. ValueError: it is unknown to this lmms-eval, or a group of tasks."""
        from lmms_eval.tasks import get_task_dict

        if task not in self.tasks.all_tasks:
            raise ValueError(f"lmms-eval knows no task {task}")
        found = get_task_dict([task], self.tasks, "chat").get(task)
        if not hasattr(found, "eval_docs"):
            raise ValueError(f"lmms-eval's {task} is a group; name one of its tasks")
        return len(found.eval_docs)

    def ask(self, task: str, limit: int | None):
        """({metric: total}, lmms-eval's log) of the first `limit` questions; ({}, []) where others do the sums."""
        from lmms_eval import evaluator

        from .lmms_eval import errors_surface

        arguments = Namespace(output_path=str(self.out / "lmms"), process_with_media=True)
        with errors_surface(self.model):
            results = evaluator.simple_evaluate(model=self.host, tasks=[task], batch_size=1, limit=limit,
                                                log_samples=True, bootstrap_iters=0, task_manager=self.tasks,
                                                cli_args=arguments)
        if results is None:
            return {}, []
        log = results["samples"][task]
        if task.startswith("mmbench") and task.endswith("_static"):
            log = rotations_together(log)
        return totals_of(results["results"][task]), log


def totals_of(results: dict) -> dict[str, float]:
    """{metric: number} of {"metric,filter": value}, without standard errors and what is no number."""
    found = {}
    for name, value in results.items():
        metric = name.partition(",")[0]
        if not metric.endswith(("_stderr", "_stderr_clt", "_stderr_clustered")) and not isinstance(value, bool):
            if isinstance(value, (int, float)) and value >= 0:
                found.setdefault(metric, float(value))
    return found


def rotations_together(log) -> list[dict]:
    """MMBench's log with one entry a question: it is right if all its rotations are, judged by lmms-eval's own rules.

    The first rotation's prediction stands for all.
    """
    import pandas as pd
    from lmms_eval.tasks.mmbench.en_utils import mmbench_evaluator

    rows = pd.DataFrame([entry["gpt_eval_score"] for entry in log])
    rows["prediction"] = rows["prediction"].astype(str)
    rows = rows.rename(columns=lambda name: name if name in "ABCD" else name.lower())
    right = dict(zip(rows["index"], rows["answer"], strict=True))
    found = []
    for entry in log:
        index = entry["gpt_eval_score"]["index"]
        if index < MMBENCH_ROTATIONS:
            hit = mmbench_evaluator.eval_sub_data(rows[rows["index"] % MMBENCH_ROTATIONS == index], right,
                                                  static_only=True)
            found.append({**entry, "gpt_eval_score": {**entry["gpt_eval_score"], "score": float(hit)}})
    return found
