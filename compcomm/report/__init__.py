"""What a run did: counters, tables, plots."""

from .recorder import Recorder as Recorder
