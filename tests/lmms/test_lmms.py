"""The metrics equal lmms-eval's own functions answer by answer, and pycocoevalcap's scorers; see `make test-lmms`."""

import importlib.util
import random
import shutil
import subprocess
from pathlib import Path

import pytest

if importlib.util.find_spec("lmms_eval") is None or importlib.util.find_spec("pycocoevalcap") is None:
    pytest.skip("lmms-eval is in the environment of `make test-lmms`", allow_module_level=True)

from fvl_lightning.evaluation.metrics.captions.tokens import caption_tokens
from fvl_lightning.evaluation.metrics.texts.evalai import CONTRACTIONS
from tests.lmms import ours, theirs
from tests.lmms.cases import FAMILIES, cases, text

CASES = 1_000
CAPTIONS = ("bleu", "cider", "rouge_l")
EXACT = [metric for metric in FAMILIES if metric not in CAPTIONS]


@pytest.mark.parametrize("metric", EXACT)
def test_each_answer_scores_what_lmms_eval_gives_it(metric: str) -> None:
    asked = cases(metric, CASES)
    expected = [theirs.score(case) for case in asked]
    found = [ours.score(case) for case in asked]
    pairs = zip(asked, expected, found, strict=True)
    unequal = [(case, one, other) for case, one, other in pairs if one != pytest.approx(other, abs=1e-9)]
    assert not unequal, f"{len(unequal)} of {CASES}, such as {unequal[:3]}"
    assert len(set(expected)) > 1, "cases of one score show nothing"


@pytest.mark.parametrize("metric", CAPTIONS)
def test_captions_score_what_pycocoevalcap_gives_them(metric: str) -> None:
    asked = cases(metric, CASES)
    corpus, each = theirs.caption_scores(metric, asked)
    scores = ours.aggregate(asked)
    numbers = [scores.further[f"bleu_{order}"] for order in (1, 2, 3)] if metric == "bleu" else []
    assert [*numbers, scores.overall] == pytest.approx(corpus, abs=1e-9)
    assert ours.caption_scores(asked) == pytest.approx([one[-1] for one in each], abs=1e-9)


def test_aggregates_of_pope() -> None:
    asked = cases("pope", CASES)
    scores = ours.aggregate(asked)
    for name, value in theirs.pope_aggregates(asked).items():
        assert scores.average(name) == pytest.approx(value), name


def test_aggregates_of_mme() -> None:
    asked = cases("mme", CASES)
    assert {name: pytest.approx(value) for name, value in theirs.mme_aggregates(asked).items()} == {
        name: value for name, value in ours.aggregate(asked).further.items() if name != "acc_plus"
    }


def test_the_table_of_contractions() -> None:
    """Words are in lower case by then, so that entries with capitals and those of equal sides have no effect."""
    table = theirs._task("_task_utils.vqa_eval_metric").EvalAIAnswerProcessor.CONTRACTIONS
    assert {key: value for key, value in table.items() if key.islower() and key != value} == CONTRACTIONS


@pytest.mark.skipif(shutil.which("java") is None, reason="Stanford's tokeniser needs Java")
def test_tokens_of_captions(tmp_path: Path) -> None:
    """Of generated texts, which are harder than captions, nearly all have the tokens of Stanford's program."""
    from pycocoevalcap.tokenizer import ptbtokenizer

    draw = random.Random(17)
    plain = [caption for case in cases("cider", 200) for caption in case.references]
    hard = [" ".join(text(draw, 6).split()) or "a" for _ in range(500)]
    (tmp_path / "in.txt").write_text("\n".join([*plain, *hard]), encoding="utf-8")
    jar = Path(ptbtokenizer.__file__).parent / ptbtokenizer.STANFORD_CORENLP_3_4_1_JAR
    program = "edu.stanford.nlp.process.PTBTokenizer"
    command = ["java", "-Dfile.encoding=UTF-8", "-cp", str(jar), program, "-preserveLines", "-lowerCase", "in.txt"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, check=True, encoding="utf-8")
    lines = [line.split() for line in done.stdout.split("\n")]
    expected = [[word for word in line if word not in ptbtokenizer.PUNCTUATIONS] for line in lines]
    equal = [caption_tokens(one, "ptb") == tokens for one, tokens in zip([*plain, *hard], expected, strict=False)]
    assert all(equal[: len(plain)])
    share = sum(equal[len(plain) :]) / len(hard)
    assert share > 0.6, share
