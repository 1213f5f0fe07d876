"""Stands in for the program of that name: a small DLRM on random batches, inference only.

Written for the tests of ``examples/reference_dlrm.py``, with what that touches under the names by which it does so.
"""

import argparse
from itertools import pairwise

import extend_distributed as ext_dist
import numpy as np
import sklearn.metrics
import torch
from torch.utils.tensorboard import SummaryWriter
from tqdm import tqdm

__all__ = ["dlrm_wrap", "inference", "run", "sklearn", "tqdm", "unpack_batch"]

nbatches = -1

WIDTHS = {"--arch-embedding-size": [4, 3, 2], "--arch-mlp-bot": [4, 3, 2], "--arch-mlp-top": [4, 2, 1]}
NUMBERS = {
    "--arch-sparse-feature-size": 2,
    "--mini-batch-size": 1,
    "--num-batches": 0,
    "--data-size": 1,
    "--num-indices-per-lookup": 10,
    "--loss-threshold": 0.0,
    "--numpy-rand-seed": 123,
}


def perceptron(widths):
    layers = [torch.nn.Linear(*pair) for pair in pairwise(widths)]
    return ext_dist.DistributedDataParallel(torch.nn.Sequential(*layers, torch.nn.Sigmoid()))


class Net(torch.nn.Module):
    def __init__(self, rows, dimension, bottom, top, threshold):
        super().__init__()
        if len(rows) < ext_dist.my_size:
            raise SystemExit(f"ERROR: {len(rows)} tables for {ext_dist.my_size} ranks")
        self.loss_threshold = threshold
        self.n_emb_per_rank = ext_dist.get_split_lengths(len(rows))[1]
        self.local_emb_slice = ext_dist.get_my_slice(len(rows))
        bags = [torch.nn.EmbeddingBag(n, dimension, mode="sum") for n in rows]
        self.emb_l = torch.nn.ModuleList(bags[self.local_emb_slice])
        self.v_W_l = [None] * len(self.emb_l)
        self.bot_l = perceptron(bottom)
        self.top_l = perceptron([dimension + (len(rows) + 1) ** 2, *top])

    def apply_emb(self, offsets, ids, bags, weights):
        given = zip(offsets, ids, bags, weights, strict=True)
        return [bag(each, starts, per_sample_weights=weight) for starts, each, bag, weight in given]

    def apply_mlp(self, values, layers):
        return layers(values)

    def interact_features(self, home, pooled):
        vectors = torch.cat([home, *pooled], dim=1).unflatten(1, (-1, home.shape[1]))
        return torch.cat([home, (vectors @ vectors.mT).flatten(1)], dim=1)

    def forward(self, dense, offsets, ids):
        tables, mine = self.local_emb_slice, ext_dist.get_my_slice(len(dense))
        pooled = self.apply_emb(offsets[tables], ids[tables], self.emb_l, self.v_W_l)
        request = ext_dist.alltoall(pooled, self.n_emb_per_rank)
        home = self.apply_mlp(dense[mine], self.bot_l)
        scores = self.apply_mlp(self.interact_features(home, list(request.wait())), self.top_l)
        least = self.loss_threshold
        return scores.clamp(least, 1 - least) if 0 < least < 1 else scores


def batches(options, rows, dense):
    random, most = np.random.default_rng(options.numpy_rand_seed), options.num_indices_per_lookup
    left = options.num_batches * options.mini_batch_size or options.data_size
    while left > 0:
        n = min(left, options.mini_batch_size)
        left -= n
        lengths = random.integers(1, most + 1, (len(rows), n))
        offsets = torch.from_numpy(np.cumsum(lengths, axis=1) - lengths)
        ids = [torch.from_numpy(random.integers(0, r, each.sum())) for r, each in zip(rows, lengths, strict=True)]
        values, target = random.random((n, dense), np.float32), random.integers(0, 2, (n, 1)).astype(np.float32)
        yield torch.from_numpy(values), offsets, ids, torch.from_numpy(target)


def unpack_batch(batch):
    return *batch[:4], torch.ones(batch[3].shape), None


def dlrm_wrap(dense, offsets, ids, use_gpu, device, ndevices=1):
    return dlrm(dense.to(device), offsets, ids)


def inference(args, model, best_accuracy, best_auc, loader, device, use_gpu, log_iter=-1):
    hits = seen = 0
    for i, batch in enumerate(loader):
        if i >= nbatches > 0:
            break
        dense, offsets, ids, target, _, _ = unpack_batch(batch)
        if len(dense) % ext_dist.my_size:
            continue
        scores = dlrm_wrap(dense, offsets, ids, use_gpu, device, ndevices=-1)
        scores = ext_dist.all_gather(scores, ext_dist.get_split_lengths(len(dense))[1])
        hits += int((scores.detach().round() == target).sum())
        seen += len(target)
    writer.add_scalar("accuracy", hits / seen, log_iter)
    if ext_dist.my_rank == 0:
        print(f"hits {hits} of {seen}", flush=True)
    return {"test_acc": hits / seen}, hits / seen > best_accuracy


def run():
    global dlrm, nbatches, writer
    parser = argparse.ArgumentParser()
    for name, usual in WIDTHS.items():
        parser.add_argument(name, default=usual, type=lambda text: [int(n) for n in text.split("-")])
    for name, usual in NUMBERS.items():
        parser.add_argument(name, default=usual, type=type(usual))
    parser.add_argument("--inference-only", action="store_true")
    parser.add_argument("--dist-backend", default="")
    args = parser.parse_args()
    assert args.inference_only
    torch.manual_seed(args.numpy_rand_seed)
    ext_dist.init_distributed(backend=args.dist_backend)
    nbatches, writer = args.num_batches, SummaryWriter("nowhere")
    rows, bottom = args.arch_embedding_size, args.arch_mlp_bot
    dlrm = Net(rows, args.arch_sparse_feature_size, bottom, args.arch_mlp_top, args.loss_threshold)
    ext_dist.barrier()
    inference(args, dlrm, 0, 0, batches(args, rows, bottom[0]), torch.device("cpu"), False)
