"""Scores of lmms-eval 0.7.3 and pycocoevalcap, of their own functions.

lmms-eval imports all of its models and tasks at once. Here its packages are opened without that: each module is
imported by itself, and names that scoring does not use are stand-ins. The stand-ins are only there while a module is
imported, since other tests of this environment use the whole of lmms-eval.
"""

import ast
import functools
import importlib
import importlib.util
import random
import sys
from collections import defaultdict
from collections.abc import Iterator
from contextlib import contextmanager
from types import ModuleType, SimpleNamespace
from typing import Any

from tests.lmms.cases import Case


def _package(name: str, **names: Any) -> None:
    module = ModuleType(name)
    vars(module).update(names)
    sys.modules[name] = module


def _open() -> None:
    found = importlib.util.find_spec("lmms_eval")
    assert found is not None
    (root,) = found.submodule_search_locations or ()
    for name, folder in {"lmms_eval": root, "lmms_eval.tasks": f"{root}/tasks", "lmms_eval.api": f"{root}/api"}.items():
        _package(name, __path__=[folder])
    unchanged = lambda *_, **__: lambda function: function  # noqa: E731
    _package("lmms_eval.api.registry", register_metric=unchanged, register_aggregation=unchanged)
    _package("lmms_eval.filters", __path__=[])
    _package("lmms_eval.filters.extraction", ExtendedRegexFilter=type("Stub", (), {"__init__": lambda *_, **__: None}))
    if importlib.util.find_spec("datasets") is None:
        _package("datasets", Dataset=object)


_alone: dict[str, ModuleType] = {}


def _taken() -> dict[str, ModuleType]:
    """Takes lmms-eval's modules out of those that are imported, and returns them."""
    return {name: sys.modules.pop(name) for name in list(sys.modules) if name.split(".")[0] == "lmms_eval"}


@contextmanager
def _opened() -> Iterator[None]:
    whole = _taken()
    sys.modules.update(_alone)
    try:
        if not _alone:
            _open()
        yield
    finally:
        _alone.update(_taken())
        sys.modules.update(whole)


@functools.cache
def _module(name: str) -> Any:
    with _opened():
        return importlib.import_module(name)


def _task(name: str) -> Any:
    return _module(f"lmms_eval.tasks.{name}")


metrics = _module("lmms_eval.api.metrics")


def score(case: Case) -> float:
    """Returns the score of one answer by the function that lmms-eval has for it."""
    return float(_SCORES[case.metric](case))


def _accuracy(case: Case) -> float:
    options = {"ignore_case": True, "ignore_punctuation": True}
    return metrics.exact_match_fn(references=case.references, predictions=[case.answer], **options)["exact_match"]


def _vqa_accuracy(case: Case) -> float:
    doc: dict[str, Any] = {"question_id": 0, "answers": list(case.references)}
    if case.config["normalisation"] == "vqav2":
        doc["answers"] = [{"answer": text, "answer_id": index} for index, text in enumerate(case.references)]
        return _task("vqav2.utils").vqav2_process_results(doc, [case.answer])["exact_match"]
    return _task("textvqa.utils").textvqa_process_results(doc, [case.answer])["exact_match"]


def _mme(case: Case) -> float:
    return next(iter(mme_results(case).values()))["score"]


def mme_results(case: Case) -> dict[str, dict[str, Any]]:
    """Returns what lmms-eval keeps of an answer to an MME question."""
    doc = {"answer": case.references[0], "category": case.kind, "question_id": case.group}
    return _task("mme.utils").mme_process_results(doc, [case.answer])


def pope_results(case: Case) -> dict[str, Any]:
    """Returns what lmms-eval keeps of an answer to a POPE question."""
    doc = {"answer": case.references[0], "question_id": 0}
    return _task("pope.utils").pope_process_results(doc, [case.answer])["pope_accuracy"]


def _ocrbench(case: Case) -> float:
    doc = {"answer": case.references, "question_type": "", **case.row}
    return _task("ocrbench.utils").ocrbench_process_results(doc, [case.answer])["ocrbench_accuracy"]["score"]


def _multiple_choice(case: Case) -> float:
    truth, letters = case.references[0], "ABCD"
    options = dict(zip(letters, case.choices, strict=True))
    if case.config["reading"] == "mmmu":
        chosen = _without_luck(case.answer, options)
    elif case.config["reading"] == "mmbench":
        chosen = _task("mmbench.mmbench_evals").MMBench_Evaluator().can_infer(case.answer.strip(), dict(options))
    elif case.config["reading"] == "mmstar":
        module = _task("mmstar.utils")
        with _opened():  # it imports another module when it is called
            return module.exact_match(case.answer, truth)
    elif case.config["reading"] == "scienceqa":
        doc = {"choices": case.choices, "answer": letters.index(truth)}
        return _task("scienceqa.utils").sqa_process_results(doc, [case.answer])["exact_match"]
    else:
        (chosen,) = _task("ai2d.utils").MultiChoiceRegexFilter().apply([[case.answer]], [{}])
        options_of = {"ignore_case": True, "ignore_punctuation": True}
        return metrics.exact_match_fn(references=[truth], predictions=[chosen], **options_of)["exact_match"]
    return float(chosen == truth)


def _without_luck(answer: str, options: dict[str, str]) -> str:
    """Returns the letter that the rule of MMMU reads; an empty text where it would draw one."""
    module = _task("_task_utils.mmmu_mcq_utils")
    module.random = SimpleNamespace(choice=lambda _: "")
    try:
        return module.parse_mmmu_multi_choice_response(answer, list(options), options)
    finally:
        module.random = random


def _iou(case: Case) -> float:
    module = _task("refcoco.utils_rec")
    return module.compute_iou(ast.literal_eval(case.references[0]), module.parse_float_sequence_within(case.answer))


_SCORES = {
    "accuracy": _accuracy,
    "vqa_accuracy": _vqa_accuracy,
    "anls": lambda case: metrics.anls(case.references, [case.answer])["anls"],
    "relaxed_accuracy": lambda case: _task("chartqa.utils").relaxed_correctness(case.answer, case.references[0]),
    "pope": lambda case: pope_results(case)["score"],
    "mme": _mme,
    "ocrbench": _ocrbench,
    "multiple_choice": _multiple_choice,
    "iou": _iou,
}


def caption_scores(metric: str, captions: list[Case]) -> tuple[list[float], list[list[float]]]:
    """Returns pycocoevalcap's scores of the corpus and of each caption: one number, or BLEU-1 to BLEU-4."""
    from pycocoevalcap.bleu.bleu_scorer import BleuScorer
    from pycocoevalcap.cider.cider_scorer import CiderScorer
    from pycocoevalcap.rouge.rouge import Rouge

    if metric == "rouge_l":
        scores = [Rouge().calc_score([case.answer], case.references) for case in captions]
        return [sum(scores) / len(scores)], [[one] for one in scores]
    scorer = BleuScorer(n=4) if metric == "bleu" else CiderScorer(n=4, sigma=6.0)
    for case in captions:
        scorer += (case.answer, case.references)
    if metric == "bleu":
        corpus, by_order = scorer.compute_score(option="closest", verbose=0)
        return list(corpus), [list(one) for one in zip(*by_order, strict=True)]
    mean, each = scorer.compute_score()
    return [float(mean)], [[float(one)] for one in each]


def pope_aggregates(answers: list[Case]) -> dict[str, float]:
    """Returns lmms-eval's numbers over all answers."""
    module, results = _task("pope.utils"), [pope_results(case) for case in answers]
    names = {"overall": "accuracy", "f1": "f1_score", "yes_rate": "yes_ratio"} | {
        name: name for name in ("precision", "recall")
    }
    return {name: getattr(module, f"pope_aggregate_{there}")(results) for name, there in names.items()}


def mme_aggregates(answers: list[Case]) -> dict[str, float]:
    """Returns lmms-eval's sums of perception and cognition."""
    results = defaultdict(list)
    for case in answers:
        for name, result in mme_results(case).items():
            results[name.removeprefix("mme_").removesuffix("_score")].append(result)
    return {name: _task("mme.utils").mme_aggregate_results(kept) for name, kept in results.items()}
