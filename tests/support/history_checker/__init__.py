"""The checker (design §14): judges a recorded run with code that shares nothing with what it judges.

``judge(load(directory), [read_store(d) for d in stores], register=read_register(stores))`` gives the anomalies: there must be
none.
"""

from history_checker.anomalies import Anomaly, Kind, summary
from history_checker.checks import Stalls, judge
from history_checker.history import Acked, Fault, HandedOver, History, Read, Reading, load, mark_of
from history_checker.journals import Frame, Holding, StoreContents, read_store
from history_checker.register import Ensembles, Register, Said, read_register
from history_checker.truth import Stored, Truth, truth_of

__all__ = [
    "judge", "load", "read_store", "read_register", "summary", "mark_of", "truth_of",
    "Anomaly", "Kind", "Stalls",
    "History", "HandedOver", "Acked", "Read", "Reading", "Fault",
    "StoreContents", "Holding", "Frame", "Register", "Ensembles", "Said", "Truth", "Stored",
]  # fmt: skip
