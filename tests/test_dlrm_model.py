"""Configurations, weights, interaction, the reference's names; the one-process model against loops written out."""

import math
from dataclasses import replace
from itertools import pairwise

import numpy as np
import pytest
import torch

from blslib.dlrm.config import KAGGLE, ModelConfig
from blslib.dlrm.model import DLRM, interact_dot, lower_triangle
from blslib.workloads.batch import Batch

SMALL = ModelConfig(rows=(7, 3, 11, 5, 1), dim=4, bottom=(6, 8, 4), top=(9, 1))


def make_batch(config: ModelConfig, size: int, seed: int = 0, most: int = 4) -> Batch:
    """Bags of 0 to ``most`` ids."""
    rng = np.random.default_rng(seed)
    offsets = [np.concatenate(([0], np.cumsum(rng.integers(0, most + 1, size)))) for _ in config.rows]
    ids = [rng.integers(0, rows, ends[-1]) for rows, ends in zip(config.rows, offsets, strict=True)]
    return Batch(rng.random((size, config.dense_features), dtype=np.float32), tuple(ids), tuple(offsets))


def weights(model: DLRM) -> dict[str, torch.Tensor]:
    """What is here, by the reference's names; of shards, those of their tables."""
    state = {f"emb_l.{shard.table}.weight": weight for shard, weight in model.tables.weights.items()}
    for name, layers in (("bot_l", model.bottom_layers), ("top_l", model.top_layers)):
        state |= {f"{name}.{key}": weight for key, weight in layers.state_dict().items()}
    return state


def by_loops(model: DLRM, batch: Batch) -> np.ndarray:
    """The forward pass in float64, one sample and one product at a time."""
    state = {name: weight.double().numpy() for name, weight in weights(model).items()}
    config = model.config
    scores = []
    for sample in range(batch.size):
        values = batch.dense[sample].astype(float)
        for layer in range(len(config.bottom) - 1):
            values = np.maximum(0, state[f"bot_l.{2 * layer}.weight"] @ values + state[f"bot_l.{2 * layer}.bias"])
        vectors = [values]
        for table in range(config.tables):
            bag = batch.ids[table][batch.offsets[table][sample] : batch.offsets[table][sample + 1]]
            vectors.append(sum((state[f"emb_l.{table}.weight"][row] for row in bag), np.zeros(config.dim)))
        if config.interaction == "cat":
            values = np.concatenate(vectors)
        else:
            values = np.array([*vectors[0], *(vectors[i] @ vectors[j] for i in range(len(vectors)) for j in range(i))])
        for layer in range(len(config.top)):
            values = state[f"top_l.{2 * layer}.weight"] @ values + state[f"top_l.{2 * layer}.bias"]
            values = np.maximum(0, values) if layer < len(config.top) - 1 else 1 / (1 + np.exp(-values))
        scores.append(values[0])
    return np.array(scores)


@pytest.mark.parametrize("interaction", ["dot", "cat"])
def test_one_process_model_equals_loops(interaction):
    config = replace(SMALL, interaction=interaction)
    model = DLRM(config, seed=3)
    batch = make_batch(config, 13)
    scores = model(batch)
    assert scores.dtype == np.float32
    assert scores.shape == (13,)
    assert np.ptp(scores) > 1e-3  # samples differ
    np.testing.assert_allclose(scores, by_loops(model, batch), rtol=1e-5, atol=1e-6)


def test_empty_batch_and_batches_of_changing_size():
    model = DLRM(SMALL, seed=3)
    for size in (0, 5, 2, 9, 5):
        batch = make_batch(SMALL, size, seed=size)
        np.testing.assert_allclose(model(batch), by_loops(model, batch), rtol=1e-5, atol=1e-6)


def test_dot_interaction_puts_the_lower_triangle_row_by_row():
    features = torch.from_numpy(np.random.default_rng(0).integers(-9, 9, (3, 4, 5)).astype(np.float32))
    out = interact_dot(features, lower_triangle(4))
    assert out.shape == (3, 5 + 6)
    for sample in range(3):
        v = features[sample].tolist()
        pairs = [(1, 0), (2, 0), (2, 1), (3, 0), (3, 1), (3, 2)]
        assert out[sample].tolist() == v[0] + [sum(a * b for a, b in zip(v[i], v[j], strict=True)) for i, j in pairs]


def test_widths_of_the_interaction():
    assert KAGGLE.interaction_width == 367
    assert sum(KAGGLE.rows) == 33_762_577
    assert replace(SMALL, interaction="cat").interaction_width == 6 * 4


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"rows": ()}, r"rows must be one positive number or more, got \(\)"),
        ({"rows": (3, 0)}, r"rows must be one positive number or more, got \(3, 0\)"),
        ({"dim": 5}, "last bottom width 4 does not match dim 5"),
        ({"bottom": (4,)}, "at least one layer"),
        ({"top": (9, 2)}, "last top width must be 1"),
        ({"top": ()}, "top must be one positive number or more"),
        ({"interaction": "sum"}, "interaction must be one of"),
    ],
)
def test_a_config_that_does_not_fit_is_refused(change, message):
    with pytest.raises(ValueError, match=message):
        replace(SMALL, **change)


def test_initial_weights_follow_the_published_distributions():
    config = ModelConfig(rows=(20_000, 50), dim=16, bottom=(300, 200, 16), top=(400, 1))
    model = DLRM(config, seed=1)
    table = model.tables.weights[model.placement.shards[0]]
    bound = math.sqrt(1 / 20_000)
    assert table.dtype == torch.float32
    assert not table.requires_grad
    assert -bound <= table.min() < -0.999 * bound
    assert 0.999 * bound < table.max() <= bound
    assert abs(table.mean()) < 0.01 * bound
    weight, bias = model.bottom_layers[0].weight, model.bottom_layers[0].bias
    assert weight.shape == (200, 300)
    assert bias.shape == (200,)
    assert weight.std().item() == pytest.approx(math.sqrt(2 / 500), rel=0.02)
    assert bias.std().item() == pytest.approx(math.sqrt(1 / 200), rel=0.2)


def test_seeds_and_parts_differ():
    one, same, other = (weights(DLRM(replace(SMALL, rows=(50, 50)), seed=seed)) for seed in (1, 1, 2))
    assert all(torch.equal(one[name], same[name]) for name in one)
    assert not any(torch.equal(one[name], other[name]) for name in one)
    assert not torch.equal(one["emb_l.0.weight"], one["emb_l.1.weight"])


def reference_modules(config: ModelConfig) -> torch.nn.Module:
    """Modules named as in the reference DLRM, with torch's own weights."""

    def mlp(widths: tuple[int, ...], last: torch.nn.Module) -> torch.nn.Sequential:
        layers: list[torch.nn.Module] = []
        for n, m in pairwise(widths):
            layers += [torch.nn.Linear(n, m), torch.nn.ReLU()]
        return torch.nn.Sequential(*layers[:-1], last)

    model = torch.nn.Module()
    model.emb_l = torch.nn.ModuleList(torch.nn.EmbeddingBag(rows, config.dim, mode="sum") for rows in config.rows)
    model.bot_l = mlp(config.bottom, torch.nn.ReLU())
    model.top_l = mlp((config.interaction_width, *config.top), torch.nn.Sigmoid())
    return model


def test_weights_of_the_reference_layout_are_taken_over():
    torch.manual_seed(5)
    reference = reference_modules(SMALL)
    model = DLRM(SMALL, seed=0)
    batch = make_batch(SMALL, 6)
    before = model(batch)
    model.bottom_layers.load_state_dict(reference.bot_l.state_dict())
    model.top_layers.load_state_dict(reference.top_l.state_dict())
    for shard, weight in model.tables.weights.items():
        weight.copy_(reference.emb_l[shard.table].weight.detach())
    with torch.no_grad():
        bags = [
            table(torch.from_numpy(ids), torch.from_numpy(offsets[:-1]))
            for table, ids, offsets in zip(reference.emb_l, batch.ids, batch.offsets, strict=True)
        ]
        dense = reference.bot_l(torch.from_numpy(batch.dense))
        expected = reference.top_l(interact_dot(torch.stack([dense, *bags], dim=1), lower_triangle(6)))
    np.testing.assert_allclose(model(batch), expected.flatten().numpy(), rtol=1e-6, atol=1e-6)
    assert not np.allclose(model(batch), before)
    state = weights(model)
    assert state.keys() == reference.state_dict().keys()
    reference.load_state_dict(state)  # and back, checked by torch


def test_weights_of_torch_are_left_alone():
    """No random number of torch's is drawn for a model."""
    torch.manual_seed(5)
    expected = torch.rand(3)
    torch.manual_seed(5)
    DLRM(SMALL, seed=0)
    assert torch.equal(torch.rand(3), expected)


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lambda b: replace(b, ids=b.ids[:3]), "batch has 3 tables, the model has 5"),
        (lambda b: replace(b, dense=b.dense[:, :2]), "batch has 2 dense features, the model has 6"),
        (lambda b: replace(b, ids=(b.ids[0] + 7, *b.ids[1:])), "table 0 has rows 0 to 6, the batch asks for 7 to"),
        (
            lambda b: replace(b, offsets=(b.offsets[0][:-1], *b.offsets[1:])),
            "table 0 has 4 offsets, a batch of 4 needs 5",
        ),
        (lambda b: replace(b, ids=(b.ids[0][:-1], *b.ids[1:])), "bad bags for table 0 of 7 rows"),
    ],
)
def test_a_batch_that_does_not_fit_is_named(spoil, message):
    with pytest.raises(ValueError, match=message):
        DLRM(SMALL, seed=0)(spoil(make_batch(SMALL, 4)))
