# The public names of this package and where each lives: read by type checkers, and by `lazy.names` at run time.
from .trajectory import Kind as Kind
from .trajectory import TrajectoryLaw as TrajectoryLaw
from .trajectory import TrajectoryMap as TrajectoryMap
from .trajectory import classify as classify
from .trajectory import classify_map as classify_map
from .trajectory import late_window as late_window
