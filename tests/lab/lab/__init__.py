"""The lab: whole emulated hosts, the wires between them, and what can go wrong with both. See docs/lab.md."""
from . import chart, rdma, witness
from .guest import BlkGuest, Guest, LedgerGuest
from .host import Host, Result
from .load import LedgerLoad, RedisLoad
from .scenario import Failure, Lab, Skip

__all__ = ["BlkGuest", "Failure", "Guest", "Host", "Lab", "LedgerGuest", "LedgerLoad", "RedisLoad", "Result", "Skip", "chart", "rdma",
           "witness"]
