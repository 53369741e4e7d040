"""The metrics by hand, in float64, and the table end to end."""

import sys
import types

import numpy as np
import pytest
import torch

from configs.errors import UserError
from models.pictures import batch_of
from scripts import evaluate
from scripts.measure import metrics, tables
from scripts.measure.truth import true_edit
from tests.helpers import laplacian_variance, mean, printed_tables


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
    """LPIPS as the package gives it; the structure distance of one image pair in float64, cosine by
    cosine.
    """
    edit, inputs, truth = images[0], images[1], images[0][::-1]
    networks = metrics.Networks(perceptual)
    columns = metrics.measure_edits(networks, {"edit": edit, "unchanged": inputs}, inputs, truth)
    signed = [batch_of(pictures) for pictures in (edit, inputs, truth)]
    levels = [laplacian_variance(image_HWC) for image_HWC in edit]
    assert columns["edit"]["sharpness"] == pytest.approx(levels, rel=1e-4)
    with torch.no_grad():
        expected = {
            "lpips_true": perceptual.lpips(signed[0], signed[2]),
            "lpips_input": perceptual.lpips(signed[0], signed[1]),
        }
    for name, values in expected.items():
        assert columns["edit"][name] == pytest.approx(values.flatten().numpy(), rel=1e-4)
    assert columns["unchanged"]["lpips_input"] == pytest.approx(np.zeros(3), abs=1e-6)

    similarities = []
    for picture in signed[:2]:
        feature = (
            perceptual.lpips.net(perceptual.lpips.scaling_layer(picture[:1]))[3][0]
            .flatten(1)
            .double()
            .numpy()
        )
        unit = feature / np.linalg.norm(feature, axis=0)
        similarities.append(np.array([[a @ b for b in unit.T] for a in unit.T]))
    assert columns["edit"]["structure"][0] == pytest.approx(
        ((similarities[0] - similarities[1]) ** 2).mean(), rel=1e-4
    )


def test_nearer_to_target_by_hand(tmp_path):
    class Scorer:
        """Text and image features that are what they are called."""

        device = "cpu"
        asked = 0

        def text_features(self, texts):
            self.asked += 1
            return torch.tensor(
                [{"summer": [1.0, 0.0], "warm": [0.8, -0.6], "winter": [0.0, 1.0]}[text] for text in texts]
            )

        def image_features(self, images):
            return torch.nn.functional.normalize(
                torch.tensor([[float(i[0, 0, 0]), float(i[0, 0, 1])] for i in images]), dim=1
            )

    pictures = np.zeros((3, 2, 2, 3), np.uint8)
    pictures[:, 0, 0, :2] = [(200, 10), (10, 200), (100, 99)]
    # Mean of summer and warm: (0.9, -0.3) / |.|, so (100, 99) is nearer to winter than to it.
    check = metrics.TargetCheck(Scorer(), ["summer", "warm"], ["winter"])
    assert check(pictures).tolist() == [False, True, True]

    scorer = Scorer()
    for _ in range(2):  # the texts are looked at once
        check = metrics.TargetCheck(scorer, ["summer", "warm"], ["winter"], tmp_path / "texts.safetensors")
        assert check(pictures).tolist() == [False, True, True]
        assert scorer.asked == 2


def test_the_sweep_end_to_end(tiny_run, tmp_path, capsys):
    assert (
        evaluate.main(
            [
                *tiny_run,
                "evaluate.scenes=2",
                "evaluate.sweep={edit.method: [pix2pix-zero, B]}",
                "evaluate.first_seed=3000000",
            ]
        )
        == 0
    )
    table, _ = printed_tables(capsys.readouterr().out)
    assert {"input unchanged", "true edit", "B scale 5"} < set(table) and any(
        name.startswith("pix2pix-zero scale") for name in table
    )
    assert (
        mean(table["true edit"]["LPIPS to truth"]) == 0
        and mean(table["input unchanged"]["LPIPS to input"]) == 0
    )
    assert all(table["B scale 5"][title] for title in ("inverted noise: variance", "auto-correlation"))
    assert (tmp_path / "runs/tree2winter/miniature/evaluate/sweep/3000000/grid.png").exists()


def test_a_sweep_has_a_row_for_each_combination():
    """Of those that differ in what their method uses: the word swap has neither an amount nor a
    strength.
    """
    from configs.loader import load

    sweep = "{edit.method: [pix2pix-zero, B, sdedit], guidance.amount: [1, 3], direction.strength: [1.5, 2]}"
    rows = evaluate.variants(load([f"evaluate.sweep={sweep}"]), "sweep")
    names = ["amount 1 strength 1.5", "amount 1 strength 2", "amount 3 strength 1.5", "amount 3 strength 2"]
    zero = [f"pix2pix-zero scale 5 {name}" for name in names]
    assert list(rows) == [*zero, "B scale 5", "sdedit scale 5 part 0.75"]
    third = rows[zero[2]]
    assert (third.edit.method, third.guidance.amount, third.direction.strength) == ("pix2pix-zero", 3.0, 1.5)
    assert third.generate.out.endswith("evaluate/3000000/pix2pix-zero-scale-5-amount-3-strength-1.5")

    for value in (1, 3):  # an edit that does not use a key lies in one folder, made with one configuration
        only = load([f"evaluate.sweep={{edit.method: [B], guidance.amount: [{value}]}}"])
        (row,) = evaluate.variants(only, "sweep").values()
        assert row.guidance.amount == load([]).guidance.amount

    more = load(["evaluate.sweep={edit.method: [B], edit.steps: [4, 8], inversion.lambda_ac: [2.5]}"])
    rows = evaluate.variants(more, "sweep")
    steps = {name: row.edit.steps for name, row in rows.items()}
    assert steps == {
        "B scale 5 edit.steps 4 inversion.lambda_ac 2.5": 4,
        "B scale 5 edit.steps 8 inversion.lambda_ac 2.5": 8,
    }
    methods = {row.edit.method for row in evaluate.variants(load([]), "sweep").values()}
    assert methods == {"pix2pix-zero", "B", "D"}


@pytest.mark.parametrize(
    ("sweep", "message"),
    [
        ("{guidance.amuont: [1]}", "no key 'guidance.amuont'; did you mean guidance.amount"),
        ("{filter.batch: [1]}", "no key 'filter.batch'.* It takes those of edit, direction, guidance"),
        ("{edit: [1]}", "no key 'edit'"),
        ("{guidance.amount: [1, high]}", "guidance.amount=high: .*high"),
        ("{guidance.amount: [1, -1]}", "guidance.amount=-1: it is 0 or more"),
        ("{edit.method: [E]}", "edit.method=E: it is sdedit, "),
        ("{edit.method: []}", "edit.method has no values"),
    ],
)
def test_a_sweep_of_what_there_is_not_is_refused(sweep, message):
    from configs.loader import load

    with pytest.raises(UserError, match=f"evaluate.sweep: {message}"):
        evaluate.variants(load([f"evaluate.sweep={sweep}"]), "sweep")


def test_the_tables_share_their_edits(tiny_run):
    from configs.loader import load

    first, second = (evaluate.variants(load(tiny_run), table) for table in ("table1", "table2"))
    assert [variant.edit.strength for variant in first.values()][:4] == [0.5, 0.6, 0.7, 0.8]
    assert [variant.edit.method for variant in first.values()][4:] == [
        "B",
        "prompt-to-prompt",
        "pix2pix-zero",
        "pix2pix-zero",
    ]
    assert [variant.edit.keep for variant in first.values()] == [0.0] * 7 + [0.8]  # the paper keeps nothing
    assert len({variant.generate.out for variant in first.values()}) == 8
    shared = first.keys() & second.keys()
    assert len(shared) == 3 and all(first[name] == second[name] for name in shared)


def test_the_shipped_generator_is_not_measured_on_scenes_it_may_know():
    """Its pairs came from seeds from 1,000,000 on, whatever this run's own are."""
    from configs.loader import load

    def names(*arguments):
        return set(evaluate.generators(load([*arguments, "runs_dir=/nowhere"]), {"scene-1"}, 128))

    assert names("evaluate.first_seed=1500000") == set()
    assert (
        names("evaluate.first_seed=2000000")
        == names("evaluate.first_seed=1500000", "source.images=photos")
        == {"distilled, shipped"}
    )
    assert names("task=tree2fall") == set()  # which starts from it, but is another edit


def test_the_filters_table_by_hand(tiny_run, tmp_path, capsys, monkeypatch):
    """Kept and dropped together are all pairs; the task's own row is selection.json's; the
    distances are the metrics' own.
    """
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
    truths = np.stack([true_edit(config, pair.record["source"], 32) for pair in pairs])
    everyone = metrics.psnr(np.stack([pair.images["edit"] for pair in pairs]), truths)
    perceptual = perceptual_loss()
    looked_at = (np.stack([pair.images[name] for pair in pairs]) for name in ("edit", "input"))
    edit_N, unchanged_N = (metrics.lpips_distance(perceptual, images, truths) for images in looked_at)
    margin = 1 - float(np.median(edit_N / unchanged_N))  # of six pairs three are better than that
    monkeypatch.setattr(evaluate_filter, "GOOD_MARGIN", margin)
    good = {pair.key for pair, ratio in zip(pairs, edit_N / unchanged_N, strict=True) if ratio <= 1 - margin}
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
    assert found["rows"][-1]["psnr_kept"] == pytest.approx(
        everyone[[pair.key in selected for pair in pairs]].mean()
    )
    evaluate_filter.print_table(found)
    assert "correlation" in capsys.readouterr().out
    with pytest.raises(UserError, match="scene_truth"):
        evaluate_filter.evaluate_filter(load([*arguments, "task.scene_truth=null"]))


def test_background_lpips_is_the_packages_map_averaged_by_hand(images, perceptual):
    edit, inputs = images
    background = np.random.default_rng(1).random((3, 32, 32)) < 0.6
    background[2] = False
    masks = metrics.Masks({"edit": ~background}, inputs=np.zeros_like(background))
    columns = metrics.measure_edits(metrics.Networks(perceptual), {"edit": edit}, inputs, masks=masks)
    found = columns["edit"]["background"]
    package = perceptual.lpips
    package.spatial = True
    try:
        with torch.no_grad():
            maps = package(batch_of(edit), batch_of(inputs)).numpy()[:, 0]
    finally:
        package.spatial = False
    for place in range(2):
        inside = [maps[place, y, x] for y in range(32) for x in range(32) if background[place, y, x]]
        assert found[place] == pytest.approx(sum(inside) / len(inside), rel=1e-4)
    assert np.isnan(found[2])  # the foreground fills the picture


def test_structure_distance_by_hand_in_float64():
    first, second = torch.randn(2, 2, 5, 7, generator=torch.Generator().manual_seed(0))

    def similarity(tokens, i, j):
        a, b = tokens[i].double().tolist(), tokens[j].double().tolist()
        return (
            sum(x * y for x, y in zip(a, b, strict=True))
            / (sum(x * x for x in a) * sum(y * y for y in b)) ** 0.5
        )

    places = [(i, j) for i in range(5) for j in range(5)]
    expected = [
        sum((similarity(a, *p) - similarity(b, *p)) ** 2 for p in places) / 25
        for a, b in zip(first, second, strict=True)
    ]
    assert metrics.structure_distance(first, second).tolist() == pytest.approx(expected, rel=1e-5)
    assert metrics.structure_distance(first, 3 * first).tolist() == pytest.approx([0, 0], abs=1e-12)


def test_other_keys_take_the_stand_ins_place(images, perceptual):
    keys = lambda picture_BCHW: picture_BCHW[:, :, ::8, ::8].flatten(2)  # noqa: E731
    networks = metrics.Networks(perceptual, keys)
    found = metrics.measure_edits(networks, {"edit": images[0]}, images[1])["edit"]["structure"]
    expected = metrics.structure_distance(*(keys(batch_of(stack)) for stack in images))
    assert found == pytest.approx(expected.numpy(), rel=1e-5)


def test_mask_iou_against_a_loop():
    first, second = np.random.default_rng(0).random((2, 4, 9, 11)) < 0.4
    first[3] = False
    for place, value in enumerate(metrics.mask_iou(first, second)):
        pairs = list(zip(first[place].ravel(), second[place].ravel(), strict=True))
        both, either = sum(a and b for a, b in pairs), sum(a or b for a, b in pairs)
        assert (np.isnan(value) and place == 3) or value == pytest.approx(both / either)


def test_the_interval_is_the_standard_error_of_the_mean(monkeypatch):
    monkeypatch.setattr(tables, "RESAMPLES", 4000)
    values = np.random.default_rng(0).exponential(2.0, 4000)
    low, high = tables.interval(values, seed=1)
    error = 1.96 * values.std() / len(values) ** 0.5  # the central limit theorem
    assert values.mean() - low == pytest.approx(error, rel=0.06) and high - values.mean() == pytest.approx(
        error, rel=0.06
    )
    shifted = tables.interval(values + 5, seed=1)  # the same draws, so that rows compare
    assert shifted == pytest.approx((low + 5, high + 5))
    monkeypatch.setattr(tables, "RESAMPLES", 100)
    again = tables.interval(values, seed=1)
    assert tables.interval(values, seed=1) == again != tables.interval(values, seed=2)


def test_fid_and_kid_against_scipy_and_a_loop():
    from scipy.linalg import sqrtm

    first = torch.randn(40, 6, generator=torch.Generator().manual_seed(0))
    second = 0.5 + torch.randn(40, 6, generator=torch.Generator().manual_seed(1)) @ torch.diag(
        torch.tensor([1.0, 2, 3, 1, 2, 0.5])
    )
    found = metrics.set_distances(first, second)
    a, b = first.double().numpy(), second.double().numpy()
    covariances = [np.cov(x, rowvar=False) for x in (a, b)]
    expected = ((a.mean(0) - b.mean(0)) ** 2).sum() + np.trace(
        sum(covariances) - 2 * sqrtm(covariances[0] @ covariances[1]).real
    )
    assert found["fid"] == pytest.approx(expected, rel=1e-6)

    def kernel(x, y):
        return (x @ y / 6 + 1) ** 3

    within = [np.mean([kernel(x[i], x[j]) for i in range(40) for j in range(40) if i != j]) for x in (a, b)]
    assert found["kid"] == pytest.approx(
        sum(within) - 2 * np.mean([kernel(x, y) for x in a for y in b]), rel=1e-6
    )
    same = metrics.set_distances(first, first)
    assert same["fid"] == pytest.approx(0, abs=1e-6)


class StandIn(torch.nn.Module):
    """For torch-fidelity's Inception, which is no requirement: it too reads the file when it is built, with
    whatever code lies in it, and is left as if in training.
    """

    def __init__(self, name, features, feature_extractor_weights_path):
        super().__init__()
        self.first = torch.nn.Conv2d(3, 4, 1, bias=False)
        self.bn = torch.nn.BatchNorm2d(4)
        self.load_state_dict(torch.load(feature_extractor_weights_path, weights_only=False))

    def forward(self, image_BCHW):
        return [self.bn(self.first(image_BCHW.float())).mean((2, 3))]


@pytest.fixture
def fidelity(monkeypatch):
    package = types.SimpleNamespace(FeatureExtractorInceptionV3=StandIn)
    monkeypatch.setitem(sys.modules, "torch_fidelity", types.ModuleType("torch_fidelity"))
    monkeypatch.setitem(sys.modules, "torch_fidelity.feature_extractor_inceptionv3", package)


def test_inceptions_file_is_named_and_never_executed(tmp_path, fidelity):
    """Neither by us nor by the package, which would execute it."""

    class Evil:
        def __reduce__(self):
            return (tmp_path / "executed").touch, ()

    torch.save({"first.weight": Evil()}, tmp_path / "evil.pth")
    for file in ("evil.pth", "missing.pth"):
        with pytest.raises(UserError, match=f"evaluate.inception=.*{file}.*https://"):
            metrics.load_inception(str(tmp_path / file))
    assert not (tmp_path / "executed").exists()


def test_an_inception_is_whole_and_not_in_training(tmp_path, fidelity):
    """A file of before 2018 has no counters of a batch norm's steps, which no result uses."""
    tensors = {f"bn.{name}": torch.rand(4) + 1 for name in ("weight", "bias", "running_mean", "running_var")}
    tensors["first.weight"] = torch.rand(4, 3, 1, 1)
    file = tmp_path / "inception.pth"
    torch.save(tensors, file)
    network = metrics.load_inception(str(file))
    image_BCHW = torch.randint(0, 256, (2, 3, 4, 4), dtype=torch.uint8)
    each_BD = torch.cat([network(image_BCHW[:1]), network(image_BCHW[1:])])
    torch.testing.assert_close(network(image_BCHW), each_BD)  # by the file's statistics, not the batch's
    for spoiled, message in (
        ({name: tensors[name] for name in tensors if name != "bn.bias"}, "lacks 1 .* the first is bn.bias"),
        (tensors | {"bn.bias": torch.zeros(5)}, "another shape, the first is bn.bias"),
    ):
        torch.save(spoiled, file)
        with pytest.raises(UserError, match=f"evaluate.inception={file} .*{message}.*https://") as caught:
            metrics.load_inception(str(file))
        assert "\n" not in str(caught.value)


def test_scene_masks_are_the_renderers():
    from models.miniature.scenes import Look, mask, scene
    from scripts.measure.judges import scene_masks

    found = scene_masks(
        [{"scene_seed": 3_000_000}, {"scene_seed": 3_000_001}], {"season": "winter"}, 64, "tree"
    )
    whole = mask(scene(3_000_001), Look("winter"), "tree")
    assert found.shape == (2, 64, 64) and found.dtype == bool
    assert (
        found[1].mean() == pytest.approx(whole.mean(), abs=0.02)
        and (found[1] <= whole.reshape(64, 2, 64, 2).any((1, 3))).all()
    )


def test_the_grid_has_a_row_a_scene_and_names_above():
    red, blue = (np.full((3, 128, 128, 3), colour, np.uint8) for colour in ((200, 0, 0), (0, 0, 200)))
    grid = np.asarray(tables.picture_grid({"red": red, "a rather long name of a method": blue}))
    top = grid.shape[0] - 3 * 128
    assert grid.shape[1] == 256 and 20 < top < 60
    assert (grid[top:, :128] == (200, 0, 0)).all() and (grid[top:, 128:] == (0, 0, 200)).all()
    assert (grid[:top, :128] < 100).any() and (grid[:top, 128:] < 100).any()  # black on white


FEW = ["evaluate.scenes=2", "segmenter.points_per_side=2", "distill.init="]


@pytest.fixture
def two_strengths(monkeypatch):
    """Of SDEdit in table1, in the place of four."""
    monkeypatch.setattr(evaluate, "SDEDIT_STRENGTHS", (0.5, 0.8))


def identity_generator(run, side=32):
    """An 'exported generator' that leaves pictures as they are, so every figure of its row is
    known.
    """
    import onnx
    from onnx import TensorProto, helper

    ends = [
        helper.make_tensor_value_info(name, TensorProto.UINT8, ["B", side, side, 3])
        for name in ("image", "edit")
    ]
    graph = helper.make_graph(
        [helper.make_node("Identity", ["image"], ["edit"])], "identity", ends[:1], ends[1:]
    )
    (run / "export").mkdir(parents=True, exist_ok=True)
    onnx.save(
        helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=9),
        run / "export" / "generator.onnx",
    )


def test_table1_end_to_end(tiny_run, two_strengths, tmp_path, capsys, monkeypatch):
    import csv
    import json

    run = tmp_path / "runs/tree2winter/miniature"
    identity_generator(run)
    assert evaluate.main(["table1", *tiny_run, *FEW]) == 0
    first = capsys.readouterr().out
    table, sets, generators = printed_tables(first)
    assert mean(sets["true edit"]["sharpness / truth's"]) == pytest.approx(1)
    assert mean(sets["true edit"]["FID to truth"]) == pytest.approx(0, abs=0.01)
    assert sets["distilled"] == sets["input unchanged"] and mean(sets["distilled"]["FID to truth"]) > 0
    assert {"SDEdit 0.5", "SDEdit 0.8", "B: DDIM + swap", "distilled", "input unchanged", "true edit"} < set(
        table
    )
    zero = "pix2pix-zero (E: D + guidance)"
    assert "pix2pix-zero as configured here" in table
    assert table["distilled"] == table["input unchanged"]  # it is the identity
    assert mean(table["true edit"]["LPIPS to truth"]) == 0 and not table["true edit"]["PSNR to truth, dB"]
    assert mean(table["input unchanged"]["Structure-Dist"]) == 0 and "BG-LPIPS" not in table[zero]
    difference = mean(table["B: DDIM + swap"]["LPIPS to truth minus the first pix2pix-zero's"])
    assert difference == pytest.approx(
        mean(table["B: DDIM + swap"]["LPIPS to truth"]) - mean(table[zero]["LPIPS to truth"]), abs=0.0011
    )
    assert set(generators) == {"distilled"} and "FID to teacher's edits" in generators["distilled"]
    assert "VGG16's relu4_3 in place of DINO" in first

    where = run / "evaluate/table1/3000000"
    rows = json.loads((where / "table.json").read_text())["rows"]
    cell = rows["B: DDIM + swap"]["lpips_true"]
    assert cell["low"] <= cell["mean"] <= cell["high"] and cell["images"] == 2
    with open(where / "table.csv") as stream:
        written = {row["method"]: row for row in csv.DictReader(stream)}
    assert (
        float(written["B: DDIM + swap"]["lpips_true_high"]) == cell["high"]
        and written["true edit"]["psnr_true"] == ""
    )
    assert (where / "grid.png").exists()

    monkeypatch.setattr("models.segmenter.Segmenter.segment", None)
    assert evaluate.main(["table1", *tiny_run, *FEW]) == 0
    again = capsys.readouterr().out
    assert (
        "0 of 1 shards" not in again and printed_tables(again)[0] == table
    )  # neither edited nor segmented again, equal draws


def test_table2_of_a_foreground_task(tiny_run, tmp_path, perceptual, capsys, monkeypatch):
    """BG-LPIPS spares the input's rendered trees and what the segmenter finds in the edit, here the
    upper half; IoU to the true pines.
    """
    from generate.shards import read_pairs
    from models.miniature.scenes import Look, mask, scene

    upper = np.arange(32)[:, None].repeat(32, 1) < 16
    monkeypatch.setattr(
        "models.segmenter.Segmenter.segment", lambda self, images, noun: [upper] * len(images)
    )
    assert evaluate.main(["table2", *tiny_run, *FEW, "task=oak2pine"]) == 0
    table, _ = printed_tables(capsys.readouterr().out)
    assert [name.partition(":")[0] for name in table][:4] == ["A", "B", "C", "D"]
    distances, overlaps = [], []
    for pair in read_pairs(tmp_path / "runs/oak2pine/miniature/evaluate/3000000/A-scale-5-edit.keep-0"):
        view = scene(pair.record["source"]["scene_seed"])
        oaks, pines = (
            mask(view, Look("summer", species=species), "tree")[2::4, 2::4] for species in ("oak", "pine")
        )
        features = [perceptual.features(batch_of([pair.images[name]])) for name in ("edit", "input")]
        distances.append(perceptual.distance_map(*features)[0].numpy()[~(upper | oaks)].mean())
        overlaps.append((upper & pines).sum() / (upper | pines).sum())
    assert mean(table["A: random noise + swap"]["BG-LPIPS"]) == pytest.approx(np.mean(distances), abs=6e-4)
    assert mean(table["A: random noise + swap"]["mask IoU with truth"]) == pytest.approx(
        np.mean(overlaps), abs=6e-4
    )
    assert mean(table["input unchanged"]["BG-LPIPS"]) == 0


def test_photographs_get_the_papers_columns(tiny_run, two_strengths, tmp_path, images, capsys):
    from PIL import Image

    (tmp_path / "photos").mkdir()
    for place, picture in enumerate(images[0]):
        Image.fromarray(picture).save(tmp_path / "photos" / f"{place}.png")
    run = tmp_path / "runs/tree2winter/miniature"
    identity_generator(run)
    arguments = [*tiny_run, *FEW, f"source.images={tmp_path}/photos"]
    assert evaluate.main(["table1", *arguments, "evaluate.scenes=256", "--dry-run"]) == 0
    assert f"images: {len(images[0])}" in capsys.readouterr().out
    assert evaluate.main(["table1", *arguments]) == 0
    table, generators = printed_tables(capsys.readouterr().out)
    assert (
        set(table["distilled"]) == {"CLIP-Acc", "Structure-Dist"}
        and "true edit" not in table
        and "distilled" in generators
    )
    assert not (run / "pairs").exists()

    identity_generator(run, 16)
    assert evaluate.main(["table1", *arguments]) == 0
    table = printed_tables(capsys.readouterr().out)[0]
    half = "distilled (16 of 32 pixels)"  # of what it changes nothing but the fine parts are lost
    assert 0 < mean(table[half]["Structure-Dist"]) < 0.1 and "distilled" not in table

    from generate import run as generate_stage

    assert (
        generate_stage.main([*arguments, "generate.pairs=3"]) == 0
    )  # now they are what the run's generator would learn from
    capsys.readouterr()
    assert evaluate.main(["table1", *arguments]) == 0
    (table,) = printed_tables(capsys.readouterr().out)
    assert "distilled" not in table


def test_missing_weights_are_named_before_anything_is_edited(tiny_run, tmp_path, capsys):
    assert evaluate.main(["table1", *tiny_run, *FEW, "evaluate.dino=/nowhere/dino.pth"]) == 2
    captured = capsys.readouterr()
    assert "evaluate.dino=/nowhere/dino.pth" in captured.err and "dino_vitbase8_pretrain.pth" in captured.err
    assert "pairs" not in captured.out
    assert evaluate.main(["table3", *tiny_run]) == 2 and "table1, table2" in capsys.readouterr().err
