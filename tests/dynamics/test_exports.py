from pathlib import Path

import loopscope.dynamics as dynamics


def test_every_exported_name_is_listed_resolves_and_hides_no_module() -> None:
    assert sorted(dynamics._EXPORTS) == sorted(dynamics.__all__)
    modules = {path.stem for path in Path(str(dynamics.__file__)).parent.glob("*.py")}
    for name, module in dynamics._EXPORTS.items():
        assert getattr(dynamics, name).__module__.rpartition(".")[2] in (module, "typing"), name
        # A function named like its module would be replaced by it as soon as somebody imports the module.
        assert name not in modules
