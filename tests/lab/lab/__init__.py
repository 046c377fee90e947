"""The lab: whole emulated hosts, the wires between them, and what can go wrong with both. See docs/lab.md."""
from .host import Host, Result
from .scenario import Failure, Lab, Skip

__all__ = ["Failure", "Host", "Lab", "Result", "Skip"]
