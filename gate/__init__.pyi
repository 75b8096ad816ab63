from .check import check_runs as check_runs
from .json_report import as_json as as_json
from .result import GateResult as GateResult
from .result import RunCheck as RunCheck
from .text import as_text as as_text
