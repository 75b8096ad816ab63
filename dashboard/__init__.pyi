# The public names of this package and where each lives: read by type checkers, and by `lazy.names` at run time.
from .app import create_app as create_app
from .app import serve as serve
