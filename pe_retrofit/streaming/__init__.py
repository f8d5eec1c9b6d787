"""Going beyond the window with flat memory: Transformer-XL's segment recurrence and attention sinks."""

from .caches import SegmentCache, SinkCache
from .segments import Segment, segment_loss, segments
from .stream import SegmentNll, Streamed, TrainStep, perplexity, stream, stream_nll, train_step

__all__ = [
    "Segment",
    "SegmentCache",
    "SegmentNll",
    "SinkCache",
    "Streamed",
    "TrainStep",
    "perplexity",
    "segment_loss",
    "segments",
    "stream",
    "stream_nll",
    "train_step",
]
