"""The configurations that stand for each exported class. A new export needs one line here."""

from __future__ import annotations

import torch

import compcomm as cc

COMPRESSORS: dict[type[cc.Compressor], list[cc.Compressor]] = {
    cc.TopK: [
        cc.TopK(ratio=0.05),
        cc.TopK(k=37),
        cc.TopK(ratio=1.0),
        cc.TopK(ratio=0.05, select="sampled"),
        cc.TopK(k=37, select="sampled"),
    ],
    cc.Threshold: [
        cc.Threshold(ratio=0.05),
        cc.Threshold(ratio=0.01, fit="pareto"),
        cc.Threshold(ratio=0.1, fit="gamma", capacity=2),
        cc.Threshold(ratio=0.3, stages=1),
    ],
    cc.RandK: [cc.RandK(ratio=0.1), cc.RandK(k=40), cc.RandK(ratio=0.1, unbiased=True), cc.RandK(k=9, unbiased=True)],
    cc.QSGD: [
        *(cc.QSGD(bits=bits) for bits in (2, 3, 4, 8)),
        *(cc.QSGD(bits=bits, rounding="nearest") for bits in (2, 4, 5)),
        cc.QSGD(bits=4, norm=2),
        cc.QSGD(levels=22, norm=2, block=128),
        cc.QSGD(levels=5, norm=2, rounding="nearest"),
        cc.QSGD(levels=1, block=64),
        cc.QSGD(levels=100, block=16, rounding="nearest"),
        cc.QSGD(bits=4, coding="elias"),
        cc.QSGD(levels=22, norm=2, coding="elias"),
        cc.QSGD(bits=3, rounding="nearest", block=64, coding="elias"),
    ],
    cc.Natural: [
        cc.Natural(),
        *(cc.Natural(bits=bits) for bits in (2, 3, 4, 8)),
        cc.Natural(bits=2, norm=2),
        cc.Natural(bits=4, norm=2, block=64),
        cc.Natural(bits=3, block=16),
    ],
    cc.Contractive: [
        cc.Contractive(cc.QSGD(bits=4)),
        cc.Contractive(cc.RandK(ratio=0.1, unbiased=True)),
        cc.Contractive(cc.Natural()),
        cc.Contractive(cc.Natural(bits=2)),
    ],
    cc.SignScale: [cc.SignScale(), cc.SignScale(scale="l2"), cc.SignScale(scale="dot"), cc.SignScale(block=32)],
    cc.LloydMax: [
        cc.LloydMax(2),
        cc.LloydMax(2.5),
        cc.LloydMax(0.5, block=64),
        cc.LloydMax(3, scale="dot"),
        cc.LloydMax(7, block=16),
    ],
    cc.Grid: [cc.Grid(4), cc.Grid(1), cc.Grid(8, block=64)],
    cc.Cast: [
        cc.Cast(torch.bfloat16),
        cc.Cast(torch.float16),
        cc.Cast(torch.float8_e4m3fn),
        cc.Cast(torch.float8_e5m2),
        cc.Cast(torch.float8_e4m3fn, block=16),
    ],
    cc.MinMax: [
        *(cc.MinMax(bits) for bits in (1, 4, 5, 8)),
        cc.MinMax(3, "nearest", block=16),
        cc.MinMax(4, "nearest"),
        cc.MinMax(6, "nearest"),
    ],
    cc.Sketch: [
        cc.Sketch(ratio=0.2),
        cc.Sketch(size=17, block=64),
        cc.Sketch(ratio=0.2, kind="count"),
        cc.Sketch(size=8, kind="gaussian"),
    ],
    cc.Rotated: [
        cc.Rotated(cc.SignScale()),
        cc.Rotated(cc.SignScale(block=64), block=64),
        cc.Rotated(cc.LloydMax(1.5, block=64), block=64),
        cc.Rotated(cc.QSGD(bits=4), block=128),
        cc.Rotated(cc.RandK(ratio=0.1)),
        cc.Rotated(cc.Contractive(cc.RandK(ratio=0.1, unbiased=True)), block=16),
        cc.Rotated(cc.TopK(ratio=0.05)),
        cc.Rotated(cc.Cast(torch.bfloat16)),
    ],
    cc.TernGrad: [cc.TernGrad(), cc.TernGrad(block=16), cc.TernGrad(clip=2.5)],
    cc.TwoMeans: [cc.TwoMeans(), cc.TwoMeans(block=32)],
}

REDUCERS: dict[type[cc.Reducer], list[cc.Reducer]] = {
    cc.Exact: [cc.Exact()],
    cc.AllReduce: [
        cc.AllReduce(cc.RandK(ratio=0.1)),
        cc.AllReduce(cc.RandK(ratio=0.25, unbiased=True)),
        cc.AllReduce(cc.Cast(torch.bfloat16)),
        cc.AllReduce(cc.Rotated(cc.RandK(ratio=0.25, unbiased=True))),
        cc.AllReduce(cc.Sketch(ratio=0.2)),
        cc.AllReduce(cc.Sketch(ratio=0.2, kind="count")),
    ],
    cc.AllGather: [
        cc.AllGather(cc.TopK(ratio=0.05)),
        cc.AllGather(cc.QSGD(bits=4)),
        cc.AllGather(cc.SignScale()),
        cc.AllGather(cc.Natural()),
        cc.AllGather(cc.QSGD(levels=22, norm=2, coding="elias")),
        cc.AllGather(cc.Cast(torch.bfloat16)),
    ],
    cc.TwoPhase: [
        cc.TwoPhase(cc.QSGD(bits=4)),
        cc.TwoPhase(cc.Natural()),
        cc.TwoPhase(cc.QSGD(bits=4, coding="elias")),
        cc.TwoPhase(cc.SignScale(), server=cc.ErrorFeedback),
        cc.TwoPhase(cc.Cast(torch.bfloat16)),
        cc.TwoPhase(cc.TopK(ratio=0.05), server=False),
    ],
    cc.SharedScale: [
        cc.SharedScale(cc.QSGD(bits=4)),
        cc.SharedScale(cc.TernGrad()),
        cc.SharedScale(cc.QSGD(levels=5, norm=2, block=64)),
        cc.SharedScale(cc.QSGD(bits=8, rounding="nearest")),
    ],
    cc.SparseAllReduce: [
        cc.SparseAllReduce(cc.TopK(ratio=0.05)),
        cc.SparseAllReduce(cc.TopK(ratio=1.0)),
        cc.SparseAllReduce(cc.Threshold(ratio=0.1)),
    ],
    cc.ErrorFeedback: [
        cc.ErrorFeedback(cc.SparseAllReduce(cc.TopK(ratio=0.05))),
        cc.ErrorFeedback(cc.SparseAllReduce(cc.TopK(ratio=0.05, select="sampled"))),
        cc.ErrorFeedback(cc.SharedScale(cc.QSGD(bits=4, rounding="nearest"))),
        cc.ErrorFeedback(cc.Exact()),
        cc.ErrorFeedback(cc.TopK(ratio=0.01)),
        cc.ErrorFeedback(cc.Threshold(ratio=0.05, fit="gamma")),
        cc.ErrorFeedback(cc.RandK(ratio=0.1)),
        cc.ErrorFeedback(cc.QSGD(bits=4)),
        cc.ErrorFeedback(cc.QSGD(bits=4, rounding="nearest")),
        cc.ErrorFeedback(cc.QSGD(bits=3, block=16)),
        cc.ErrorFeedback(cc.SignScale()),
        cc.ErrorFeedback(cc.Natural(bits=4)),
        cc.ErrorFeedback(cc.Cast(torch.float8_e4m3fn)),
        cc.ErrorFeedback(cc.Rotated(cc.LloydMax(2))),
        cc.ErrorFeedback(cc.QSGD(bits=3, rounding="nearest", coding="elias")),
        cc.ErrorFeedback(cc.AllGather(cc.SignScale())),
        cc.ErrorFeedback(cc.TwoPhase(cc.SignScale(block=64), server=False)),
        cc.ErrorFeedback(cc.AllReduce(cc.Cast(torch.bfloat16))),
        cc.ErrorFeedback(cc.Rotated(cc.SignScale(), block=64)),
        cc.ErrorFeedback(cc.Sketch(ratio=0.2, kind="count")),
    ],
    cc.Warmup: [
        cc.Warmup(2, cc.ErrorFeedback(cc.TopK(ratio=0.05))),
        cc.Warmup(1, cc.QSGD(bits=8)),
    ],
    cc.Partition: [
        cc.Partition({"layer.*": cc.ErrorFeedback(cc.SignScale()), "head": cc.TopK(ratio=0.1), "*": cc.Exact()}),
        cc.Partition({"emb*": cc.ErrorFeedback(cc.RandK(ratio=0.2)), "*": cc.ErrorFeedback(cc.QSGD(bits=4))}),
    ],
}
