from .check import GateResult as GateResult
from .check import RunCheck as RunCheck
from .check import check_runs as check_runs
