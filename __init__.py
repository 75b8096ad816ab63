"""loopscope: stability analysis and dynamical-systems diagnostics for looped language models.

    import loopscope

    with loopscope.attach(model, "runs/a.h5") as probe:
        for batch in loader:
            loss = model(batch); loss.backward(); optimizer.step()
            probe.step(loss=loss)

    print(loopscope.diagnose(loopscope.open_run("runs/a.h5")).summary)

Importing the package is light: names are resolved on first use, and reading runs never imports torch.
"""

from .lazy import names
from .moved import install

__version__ = "0.1.0"
install()
__getattr__, __dir__, __all__ = names(__name__, __file__)
