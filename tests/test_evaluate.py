"""The metrics by hand, in float64, and the table end to end."""

import numpy as np
import pytest
import torch

from configs.errors import UserError
from scripts import evaluate, metrics


@pytest.fixture
def images():
    rng = np.random.default_rng(0)
    return rng.integers(0, 256, (2, 3, 32, 32, 3), dtype=np.uint8)


@pytest.fixture(scope="module")
def perceptual():
    from models.perceptual import perceptual_loss

    return perceptual_loss("cpu")


def test_psnr_is_scikit_images(images):
    from skimage.metrics import peak_signal_noise_ratio

    expected = [peak_signal_noise_ratio(a, b) for a, b in zip(*images, strict=True)]
    assert metrics.psnr(*images) == pytest.approx(expected)
    assert np.isinf(metrics.psnr(images[0], images[0])).all()


def test_columns_are_their_formulas(images, perceptual):
    """LPIPS as the package gives it; the structure distance of one image pair in float64, cosine by cosine."""
    edit, inputs, truth = images[0], images[1], images[0][::-1]
    columns = metrics.perceptual_columns(perceptual, {"edit": edit, "unchanged": inputs}, inputs, truth)
    signed = [metrics.signed(pictures, perceptual) for pictures in (edit, inputs, truth)]
    with torch.no_grad():
        expected = {"lpips_true": perceptual.lpips(signed[0], signed[2]), "lpips_input": perceptual.lpips(signed[0], signed[1])}
    for name, values in expected.items():
        assert columns["edit"][name] == pytest.approx(values.flatten().numpy(), rel=1e-4)
    assert columns["unchanged"]["lpips_input"] == pytest.approx(np.zeros(3), abs=1e-6)

    similarities = []
    for picture in signed[:2]:
        feature = perceptual.lpips.net(perceptual.lpips.scaling_layer(picture[:1]))[3][0].flatten(1).double().numpy()
        unit = feature / np.linalg.norm(feature, axis=0)
        similarities.append(np.array([[a @ b for b in unit.T] for a in unit.T]))
    assert columns["edit"]["structure"][0] == pytest.approx(((similarities[0] - similarities[1]) ** 2).mean(), rel=1e-4)


def test_nearer_to_target_by_hand():
    class Scorer:
        """Text and image features that are what they are called."""

        def text_features(self, texts):
            return torch.tensor([{"summer": [1.0, 0.0], "warm": [0.8, -0.6], "winter": [0.0, 1.0]}[text] for text in texts])

        def image_features(self, images):
            return torch.nn.functional.normalize(torch.tensor([[float(i[0, 0, 0]), float(i[0, 0, 1])] for i in images]), dim=1)

    pictures = np.zeros((3, 2, 2, 3), np.uint8)
    pictures[:, 0, 0, :2] = [(200, 10), (10, 200), (100, 99)]
    # Mean of summer and warm: (0.9, -0.3) / |.|, so (100, 99) is nearer to winter than to it.
    assert metrics.nearer_to_target(Scorer(), pictures, ["summer", "warm"], ["winter"]).tolist() == [False, True, True]


def test_the_table_end_to_end(tiny_run, tmp_path, capsys):
    arguments = [*tiny_run, "evaluate.scenes=2", "evaluate.methods=[pix2pix-zero,B]", "evaluate.first_seed=3000000"]
    assert evaluate.main(arguments) == 0
    printed = capsys.readouterr().out
    rows = {line.split("|")[1].strip(): line.split("|")[2:-1] for line in printed.splitlines() if line.startswith("| ")}
    assert {"input unchanged", "true edit"} < set(rows) and any(name.startswith("pix2pix-zero scale") for name in rows)
    assert "inf" in rows["true edit"][1] and float(rows["true edit"][2]) == pytest.approx(0, abs=1e-3)
    assert float(rows["input unchanged"][4]) == pytest.approx(0, abs=1e-3)
    assert "against word swap" in printed
    assert (tmp_path / "runs/tree2winter/miniature/evaluate/3000000/grid.png").exists()


def test_the_runs_own_pairs_are_not_made_again(tiny_run):
    from configs.loader import load, pairs_dir

    config = load([*tiny_run, "evaluate.first_seed=1000000", "evaluate.scenes=4", "evaluate.methods=[pix2pix-zero,D]"])
    folders = [variant.generate.out for variant in evaluate.variants(config).values()]
    assert folders[0] == str(pairs_dir(config)) and folders[1] != folders[0]
    assert evaluate._trained_on(config)
    config.evaluate.first_seed = 3_000_000
    assert not evaluate._trained_on(config)
    assert all(variant.generate.out != str(pairs_dir(config)) for variant in evaluate.variants(config).values())


def test_the_shipped_generator_is_not_measured_on_scenes_it_may_know():
    """Its pairs came from seeds from 1,000,000 on, whatever this run's own are."""
    from configs.loader import load

    inputs = np.zeros((1, 128, 128, 3), np.uint8)
    assert set(evaluate._by_generators(load(["evaluate.first_seed=1500000", "runs_dir=/nowhere"]), inputs)) == set()
    assert set(evaluate._by_generators(load(["evaluate.first_seed=2000000", "runs_dir=/nowhere"]), inputs)) == {"shipped generator"}


def test_the_filters_table_by_hand(tiny_run, tmp_path, capsys):
    """Kept and dropped together are all pairs; the task's own row is selection.json's; the distances are the metrics' own."""
    from configs.loader import load
    from filter import run as filter_stage
    from generate import run as generate_stage
    from generate.shards import read_pairs
    from models.perceptual import perceptual_loss
    from scripts import evaluate_filter

    arguments = [*tiny_run, "generate.pairs=6", "filter.select=[keep=0.5]"]
    assert generate_stage.main(arguments) == 0 and filter_stage.main(arguments) == 0
    config = load(arguments)
    pairs = list(read_pairs(evaluate_filter.pairs_dir(config)))
    truths = np.stack([evaluate.true_edit(config, pair.record["source"], 32) for pair in pairs])
    everyone = metrics.psnr(np.stack([pair.images["edit"] for pair in pairs]), truths)
    perceptual = perceptual_loss()
    looked_at = (np.stack([pair.images[name] for pair in pairs]) for name in ("edit", "input"))
    edit_N, unchanged_N = (metrics.lpips_distance(perceptual, images, truths) for images in looked_at)
    config.filter.good_margin = 1 - float(np.median(edit_N / unchanged_N))  # of six pairs three are better than that
    good = {pair.key for pair, ratio in zip(pairs, edit_N / unchanged_N, strict=True) if ratio <= 1 - config.filter.good_margin}
    found = evaluate_filter.evaluate_filter(config)
    selected = filter_stage.score_and_select(config)["kept"]
    for row in found["rows"]:
        count = round(row["kept"] * len(pairs))
        total = count * (row["psnr_kept"] or 0) + (len(pairs) - count) * (row["psnr_dropped"] or 0)
        assert total / len(pairs) == pytest.approx(everyone.mean())
    assert found["rows"][-1]["kept"] == len(selected) / len(pairs)
    assert len(good) == 3 and found["good"] == 0.5
    precision, recall = found["rows"][-1]["precision"], found["rows"][-1]["recall"]
    assert len(selected) == 3 and precision == recall == len(good & {*selected}) / 3
    assert found["rows"][0]["precision"] == found["good"] and found["rows"][0]["recall"] == 1
    assert found["rows"][-1]["psnr_kept"] == pytest.approx(everyone[[pair.key in selected for pair in pairs]].mean())
    evaluate_filter.print_table(found)
    assert "correlation" in capsys.readouterr().out
    with pytest.raises(UserError, match="scene_truth"):
        evaluate_filter.evaluate_filter(load([*arguments, "task.scene_truth=null"]))
