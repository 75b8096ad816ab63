"""Asking the server for news, one question at a time.

Dash drops the answer to a callback that has been asked again meanwhile. Where reading or drawing takes longer than the
time between two questions, every answer would be dropped, and a page would stand still for as long as its run is live.
A clock here therefore skips its ticks until all that the last one set off is on the page. (Dash's own marks of what it
waits for do not tell: with two questions on their way, the first answer clears the mark of both.) What a reader asks
for between two ticks is answered with the number of the earlier one, at times after the later one was answered: of each
answer the latest number counts.

Not covered: the questions themselves (the pages' callbacks).
"""

from typing import Any

from dash import ClientsideFunction, Dash, Input, Output, State, dcc


class Clock:
    """Ticks for a page, each let through only when the one before has been answered, or is taken for lost.

    Args:
        name: What its interval is called: callbacks may change its ``interval`` and whether it is ``disabled``.
        answers: What every tick sets off. Each of them is a callback that gives the `asked` it was called with back to
            its `answered`, whatever else it has to say.

    Attributes:
        tick: Input of the callback that asks; its value is the number of the tick.
        asked: State of the callbacks that answer: the number of the last tick that was let through.
        latest: States, one for each answer: the number of the last tick that it has been given to.
    """

    def __init__(self, name: str, answers: tuple[str, ...]) -> None:
        self.name, self.answers = name, answers
        self.tick = Input(f"{name}-tick", "data")
        self.asked = State(f"{name}-tick", "data")
        self.latest = [State(kept, "data") for kept in self._latest()]

    def answered(self, answer: str, **settings: Any) -> Output:
        """Return where one of the answers says that it has arrived; ``settings`` are those of an output."""
        return Output(f"{self.name}-{answer}", "data", **settings)

    def parts(self, interval: int, *, disabled: bool = False) -> list[Any]:
        """Return what a page has to hold: the interval, of so many milliseconds, and what was asked and answered."""
        kept = [f"{self.name}-{part}" for part in ("tick", *self.answers)]
        stores = [dcc.Store(id=name, data=0) for name in (*kept, *self._latest())]
        return [dcc.Interval(id=self.name, interval=interval, disabled=disabled), *stores]

    def register(self, app: Dash) -> None:
        """Start it, for every page that holds its parts."""
        app.clientside_callback(
            ClientsideFunction("loopscope", "tick"),
            Output(f"{self.name}-tick", "data"),
            Input(self.name, "n_intervals"),
            self.asked,
            *self.latest,
            prevent_initial_call=True,
        )
        app.clientside_callback(
            ClientsideFunction("loopscope", "latest"),
            [Output(name, "data") for name in self._latest()],
            [Input(f"{self.name}-{answer}", "data") for answer in self.answers],
            self.latest,
            prevent_initial_call=True,
        )

    def _latest(self) -> list[str]:
        """Return where the latest number of every answer is kept."""
        return [f"{self.name}-{answer}-latest" for answer in self.answers]
