"""The words in which verdicts are given, each explained in one or two sentences.

The pages show an explanation beside its word: on pointing at it, on a tap, or when the keyboard reaches it
(`assets/terms.js`). docs/dashboard.md has the same sentences.

Not covered: rules, which have pages of their own; what a plot shows, which its "?" says.
"""

from __future__ import annotations

from typing import Final

WORDS: Final = {
    "stable": "The loop forgets: its steps get shorter from loop to loop and small differences die out. More loops at "
    "test time do no harm.",
    "marginal": "At the edge: steps or small differences neither shrink nor grow for certain, or the state drifts or "
    "orbits. The loop holds at the depth of training; more loops do not settle it.",
    "unstable": "The loop amplifies: its steps or small differences grow from loop to loop, or its state is not "
    "finite. Norms and the read-out can hide that from the loss for a while.",
    "unknown": "Too little was recorded to say.",
    "settles": "Its steps get shorter until it rests: geometrically (by the same factor in every loop), slowly (like a "
    "power of the number of loops), or to round-off (only the last digits still move).",
    "drifts": "Its steps keep their size, or shrink too slowly, and lead away: every loop moves the state on, and it "
    "never arrives.",
    "orbits": "Its steps keep their size and turn: the state stays in bounds and never rests.",
    "explodes": "Its steps grow from loop to loop, and the state with them.",
    "undecided": "Two laws fit the recorded loops equally well; more loops would tell them apart.",
    "gate": "What `loopscope check` says, which can fail a job of CI: fail, where a rule of severity error fired; "
    "error, where something that should have been judged was not; else pass.",
}
REGIMES: Final = ("stable", "marginal", "unstable", "unknown")
"""The words of a verdict."""
MOTIONS: Final = ("settles", "drifts", "orbits", "explodes", "undecided")
"""What a state does over the loops."""


def said_in(text: str) -> list[str]:
    """Return the words about motion that stand in a text, in the order in which they do.

    >>> said_in("z_H is undecided between orbiting and drifting, z_L settles")
    ['undecided', 'settles']
    """
    return sorted((word for word in MOTIONS if word in text), key=text.index)
