"""The evaluation, on the shipped model and the small corpus."""

import json
from pathlib import Path

import pytest

from haversack import edge
from haversack.tools.training import evaluate
from haversack.tools.training.decoder import Decoder, DecoderShape
from haversack.tools.training.export import export_gguf, load_gguf

CORPUS = Path(__file__).parents[2] / "data" / "corpus"


@pytest.fixture(scope="module")
def report(tmp_path_factory: pytest.TempPathFactory) -> evaluate.Report:
    """Of the shipped model, with an untrained dense model as its twin."""
    twin = tmp_path_factory.mktemp("evaluate") / "untrained.gguf"
    vocabulary = load_gguf(edge.builtin_model())[1]
    export_gguf(Decoder(DecoderShape(num_experts=0)), vocabulary, twin, "F16")
    return evaluate.evaluated(edge.builtin_model(), CORPUS, [twin])


@pytest.mark.slow
def test_the_model_beats_the_baselines_on_every_domain_it_knows(report: evaluate.Report) -> None:
    name = edge.builtin_model().stem
    for row in report["losses"]:
        assert row["untrained perplexity"] > 1000
        if not row["domain"].endswith("(new domain)"):
            best = min(row["bigram perplexity"], row["unigram perplexity"])
            assert row[f"{name} perplexity"] < 0.7 * best, row
    assert report["losses"][-1]["domain"] == evaluate.ALL_TRAINED


@pytest.mark.slow
def test_no_expert_is_dead_on_held_out_text(report: evaluate.Report) -> None:
    assert [row["layer"] for row in report["load"]] == list(range(8))
    for row in report["load"]:
        assert row["dead"] == 0 and row["least"] >= 0.1, row
        assert 0.8 < row["entropy"] <= 1


@pytest.mark.slow
def test_its_routing_stands_beside_that_of_real_models(report: evaluate.Report) -> None:
    own, *real = report["reuse"]
    assert own["experts"] == 32 and len(real) == 4
    for row in report["reuse"]:
        rates = [row["lru_12.5%"], row["lru_25%"], row["lru_50%"]]
        assert 0 < rates[0] <= rates[1] <= rates[2] <= 1
        for share in ("12.5%", "25%", "50%"):
            assert row[f"lru_{share}"] <= row[f"belady_{share}"]
    assert own["reuse"] > 4 / 32  # more than chance


@pytest.mark.slow
def test_later_layers_can_be_predicted(report: evaluate.Report) -> None:
    near = [row["plus_0"] for row in report["recall"] if row["depth"] == 1]
    far = [row["plus_0"] for row in report["recall"] if row["depth"] == 3]
    assert len(near) == 7 and len(far) == 5
    assert sum(near) / 7 > sum(far) / 5 > 4 / 32
    for row in report["recall"]:
        assert row["plus_0"] <= row["plus_2"] <= row["plus_4"] <= 1


@pytest.mark.slow
def test_weights_fall_from_rank_to_rank(report: evaluate.Report) -> None:
    weights = [row["mean_weight"] for row in report["scores"]]
    assert weights == sorted(weights, reverse=True)
    assert sum(weights) == pytest.approx(1, abs=1e-5)
    assert report["scores"][0]["score_q90"] == pytest.approx(0, abs=1e-6)


@pytest.mark.slow
def test_the_report_is_written_as_tables(report: evaluate.Report) -> None:
    tables = evaluate.markdown(report)
    for title in ("Held-out losses", "Load of the experts", "Reuse", "predicted", "by rank"):
        assert title in tables
    json.dumps(report)


def test_a_wrong_path_is_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert evaluate.main([str(CORPUS), str(tmp_path / "no.gguf"), str(tmp_path)]) == 2
    assert "no.gguf does not exist: give the path of a GGUF" in capsys.readouterr().err
