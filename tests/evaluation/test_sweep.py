"""One command for several tasks, in one process and in two."""

import json

import pytest
import task_files

from budgetprune.cli_eval import entries
from budgetprune.evaluation.processes import Processes, ProcessLost
from budgetprune.training.base_model import CHECKPOINTS

SMALL = ("--latency-batch", 0, "--new-tokens", 2, "--batch", 3, "--model", CHECKPOINTS / "digits-llava")


@pytest.fixture
def files(tmp_path):
    """Options of digits, POPE's two files and GQA."""
    folders = {name: tmp_path / name for name in ("pope", "gqa")}
    for folder in folders.values():
        folder.mkdir()
    pope, gqa = task_files.pope(folders["pope"]), task_files.gqa(folders["gqa"])
    other = task_files.pope(folders["pope"], name="coco_pope_random.json")["annotations"]
    options = [f"pope.annotations={pope['annotations']}", f"pope.images={pope['images']}",
               f"pope@random.annotations={other}", f"gqa.annotations={gqa['annotations']}",
               f"gqa.images={gqa['images']}"]
    return [part for option in options for part in ("--task-option", option)]


def records(folder):
    return [json.loads(line) for line in (folder / "records.jsonl").read_text().splitlines()]


def test_several_tasks_leave_one_file_and_a_table_each(words, tmp_path, files):
    arguments = ("eval", "--tasks", "digits", "pope@random", "pope", "gqa", *files, "-m", "none,uniform", "-k", "8",
                 "--samples", 4, "--out", tmp_path / "run", *SMALL)
    code, said = words(*arguments)
    assert code == 0, said
    found = records(tmp_path / "run")
    assert [(r["task"], r["method"]) for r in found] == [
        (task, method) for task in ("digits", "pope:coco_pope_random", "pope:coco_pope_popular",
                                    "gqa:testdev_balanced_questions") for method in ("none", "uniform")]
    for r in found[::2]:
        assert f"{r['task']}, digits-llava, {r['samples']} questions" in said
    figures = found[2]["metrics"]
    assert "f1 ┃ yes_ratio" in said and f" {figures['f1']:.4f} │ {figures['yes_ratio']:.4f} " in said
    assert len((tmp_path / "run" / "answers.jsonl").read_text().splitlines()) == 2 * (12 + 2)
    before = (tmp_path / "run" / "records.jsonl").read_bytes()
    assert words(*arguments)[0] == 0
    assert (tmp_path / "run" / "records.jsonl").read_bytes() == before


def test_beginning_anew_puts_the_old_sweep_aside_once(words, tmp_path, files):
    arguments = ("eval", "--tasks", "digits,pope", *files[:4], "-m", "uniform", "-k", "8", "--samples", 2, "--out",
                 tmp_path / "run", *SMALL)
    assert words(*arguments)[0] == words(*arguments, "--no-resume")[0] == 0
    assert len(records(tmp_path / "run")) == len((tmp_path / "run" / "records.jsonl.old").read_text().splitlines()) == 2


def test_options_and_pruners_go_to_the_tasks_that_they_name():
    digits, random, pope = entries(None, "digits,pope@random,pope", ["pope.images=i", "pope@random.annotations=r=s",
                                                                     "pope.annotations=p"], ["all", "pope=some=where",
                                                                                             "pope@random=one"])
    assert (digits.name, digits.options, list(map(str, digits.pruners))) == ("digits", [], ["all"])
    assert (random.name, random.options) == ("pope", ["images=i", "annotations=r=s"])
    assert list(map(str, random.pruners)) == ["all", "some=where", "one"]
    assert (pope.options, list(map(str, pope.pruners))) == (["images=i", "annotations=p"], ["all", "some=where"])
    (alone,) = entries(None, None, ["noise=0.1"], ["a=b"])
    assert (alone.label, alone.options, list(map(str, alone.pruners))) == ("digits", ["noise=0.1"], ["a=b"])


@pytest.mark.parametrize("arguments, match", [
    (("--tasks", "digits,pope", "--task-option", "noise=0.1"),
     "task-option must be TASK.key=value where several tasks are asked, got 'noise=0.1'"),
    (("--tasks", "digits", "--task-option", "gqa.images=x"),
     "task-option must be of a task that is asked, digits; got 'gqa.images=x'"),
    (("--tasks", "digits,digits"), "tasks must differ: one that is asked twice gets a name such as pope@random"),
    (("--tasks", "digits,digits@again", "-m", "uniform", "-k", "8", "--samples", "1"),
     "tasks must be different questions, got digits, digits"),
    (("--tasks", "digits", "--task", "digits"), "one of task and tasks must be given, got 'digits' and 'digits'"),
    (("--pruner", ""), "pruner must be FOLDER, TASK=FOLDER or LABEL=FOLDER, got ''"),
    (("--pruner", "digits="), "pruner must be FOLDER, TASK=FOLDER or LABEL=FOLDER, got 'digits='"),
    (("--tasks", ""), "tasks must name at least one, got ''"),
    (("--tasks", "digits,chess", "-m", "uniform"), "task must be one of digits"),
])
def test_a_wrong_list_of_tasks_gets_one_clear_line(words, tmp_path, arguments, match):
    code, said = words("eval", "--out", tmp_path, *arguments)
    assert code == 2 and match in said and "Traceback" not in said and not (tmp_path / "records.jsonl").exists()


def test_a_lost_process_is_one_line_and_exit_code_one(monkeypatch, words, tmp_path):
    class Lost(Processes):
        def gather(self, make, *arguments):
            raise ProcessLost("another of the 2 processes ended or did not answer: [/pair.cc:553]")

    monkeypatch.setattr(Processes, "launched", Lost)
    code, said = words("eval", "-m", "uniform", "-k", "8", "--samples", 2, "--out", tmp_path)
    assert code == 1 and "Traceback" not in said
    assert "did not answer: [/pair.cc:553]; the same command goes on from what is done" in said
