"""Control tokens of one frame: how strengths, notes and style become the encoder's 144 integers.

Follows ``magenta_rt.jax.system`` (``discretize_cfg``, ``_build_conditioning``) of magenta-rt 2.0.3. The
encoder adds the shift by 7 itself, so tokens here are as the official host gives them.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from coreproof.errors import InputError
from coreproof_exporters.mrt2.architecture import CONTROLS

MASKED = -1
# Strength -1 is token 0; step and greatest token of each guidance channel.
GUIDANCE = {"style": (0.2, 40), "notes": (0.2, 40), "drums": (1.0, 8)}
_LEAST_STRENGTH, _GREATEST_STRENGTH = -1.0, 7.0
DEFAULT_STRENGTHS = {"style": 3.0, "notes": 1.0, "drums": 1.0}  # the official ones


def guidance_token(channel: str, strength: float) -> int:
    """The token of a guidance strength, -1.0 to 7.0, in its channel's own unit: style and notes count
    in 0.2, drums in 1.0, so 3.0 is token 20 for style and token 4 for drums.

    Raises InputError for an unknown channel, and for a strength that is no number in range: the
    official code clamps, which hides that a token was given for a strength.
    """
    if channel not in GUIDANCE:
        raise InputError(f"guidance channel {channel!r}; choose {', '.join(GUIDANCE)}")
    if not _LEAST_STRENGTH <= strength <= _GREATEST_STRENGTH:
        raise InputError(
            f"guidance strength {strength} for {channel}: expected {_LEAST_STRENGTH} to {_GREATEST_STRENGTH}; "
            "give the strength, not its token"
        )
    step, greatest = GUIDANCE[channel]
    return min(greatest, round((strength - _LEAST_STRENGTH) / step))


def check_style(style: Sequence[int], codes: int) -> None:
    """Raise InputError unless ``style`` holds codes 0 to ``codes`` - 1 of each level, or -1 for a masked
    one: ids that count on from level to level would read another level's rows."""
    for level, code in enumerate(style):
        if not MASKED <= code < codes:
            raise InputError(
                f"style code {code} at level {level}: expected 0 to {codes - 1}, or -1 for masked; every level "
                "counts from 0, take the level's offset off"
            )


def conditioning_tokens(
    style: Sequence[int],
    levels: int,
    *,
    piano_roll: Sequence[int] | None = None,
    drums: int = MASKED,
    strengths: Mapping[str, float] = DEFAULT_STRENGTHS,
) -> np.ndarray:
    """The encoder's input int32 (1, 144). ``style``: up to ``levels`` MusicCoCa codes, the rest masked;
    ``piano_roll``: 128 values, -1 masked, 0 off, 1 held, 2 struck, 3 on; ``drums``: -1, 0 or 1;
    ``strengths``: of style, notes and drums.

    Raises InputError for another length, a value out of range or a missing strength.
    """
    pitches = CONTROLS[0][1]
    notes = [MASKED] * pitches if piano_roll is None else list(piano_roll)
    if len(style) > levels or len(notes) != pitches:
        raise InputError(
            f"{len(style)} style codes and {len(notes)} pitches; expected up to {levels}, and {pitches}"
        )
    if min(style, default=0) < MASKED or not all(-1 <= v <= 3 for v in notes) or drums not in (-1, 0, 1):
        raise InputError("style codes start at -1, piano roll values are -1 to 3, drums -1 to 1")
    if set(strengths) != set(GUIDANCE):
        raise InputError(f"strengths of {', '.join(sorted(strengths))}; expected {', '.join(GUIDANCE)}")
    guidance = [guidance_token(channel, strengths[channel]) for channel in GUIDANCE]
    padded = [*style, *[MASKED] * (levels - len(style))]
    return np.array([[*padded, *notes, drums, *guidance]], np.int32)
