# The public names of this package and where each lives: read by type checkers, and by `lazy.names` at run time.
__version__: str
from .loops.analysis import linearize as linearize
from .loops.description import LoopDescription as LoopDescription
from .loops.description import describe as describe
from .loops.mark import mark as mark
from .loops.site import LoopSite as LoopSite
from .loops.site import LoopSiteError as LoopSiteError
from .loops.site import Part as Part
from .loops.site import Variable as Variable
from .probes.probe import Probe as Probe
from .probes.probe import attach as attach
from .probes.stopping import LoopUnstable as LoopUnstable
from .rules.diagnosis import Diagnosis as Diagnosis
from .rules.diagnosis import diagnose as diagnose
from .runfile.open import open_run as open_run
from .runfile.reader import Run as Run
from .runfile.reader import RunFileError as RunFileError
