"""What ``coreproof generate`` runs: text or phonemes and a voice to speech, sentence by sentence."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np

from coreproof.arrays import read_npy
from coreproof.audio.sound import Report, Sound, quiet
from coreproof.errors import InputError, UsageError
from coreproof_exporters.styletts2.architecture import SAMPLE_RATE
from coreproof_exporters.styletts2.reference_audio import read_clip
from coreproof_exporters.styletts2.symbols import phonemize, sentences, tokenize
from coreproof_exporters.styletts2.synthesizer import LONG_CUT, SHORT_CUT, Manner, Noise, Synthesizer

Similarity = Callable[[np.ndarray, np.ndarray, int], float]

_NUMBERS = ("alpha", "beta", "scale", "carry")
_OPTIONS = {
    "text", "ipa", "reference", "ref_s", "seed", "steps", "sampler", "precision", "source", "language",
    "similarity", *_NUMBERS,
}  # fmt: skip


def generate(
    build: Path, seconds: float, backend: str, options: Mapping[str, str], report: Report = quiet
) -> Sound:
    """Speech from ``build``; how long it is follows from the text, so ``seconds`` is not read.

    Options: ``text`` (through espeak-ng, in ``language``, by default en-us) or ``ipa``; the voice as
    ``reference``, a WAV file of 1 to 25 s at any rate, or ``ref_s``, a ``.npy`` file of 256 floats, acoustic
    half first; ``seed``; ``alpha``, ``beta``, ``steps``, ``scale``, ``sampler`` and ``carry`` as
    :class:`~coreproof_exporters.styletts2.synthesizer.Manner`; ``precision`` fp32 or fp16; ``source`` host or graph;
    ``similarity``, a ``module:function`` that scores the speech against the reference clip.

    Several sentences are spoken one by one, each style leaning on the one before. Raises UsageError for
    an option that does not exist or fit, InputError for text without a known phoneme or too long, and for a
    reference that is too short, and as :class:`~coreproof_exporters.styletts2.synthesizer.Synthesizer`.
    """
    if unknown := set(options) - _OPTIONS:
        raise UsageError(
            f"styletts2 has no option {', '.join(sorted(unknown))}; it has {', '.join(sorted(_OPTIONS))}"
        )
    manner = Manner(
        **{name: _number(options, name) for name in _NUMBERS if name in options},
        **({"steps": int(_number(options, "steps"))} if "steps" in options else {}),
        **({"sampler": options["sampler"]} if "sampler" in options else {}),
    )
    spoken = _sentences(options)
    hook = similarity(options["similarity"]) if "similarity" in options else None
    seed = _number(options, "seed") if "seed" in options else 1.0
    if seed < 0 or seed != int(seed):
        raise UsageError(f"option seed={options['seed']}: expected a whole number, 0 or more")
    synthesizer = Synthesizer(
        build,
        _choice(options, "precision", ("fp32", "fp16")),
        backend=backend,
        sourced=_choice(options, "source", ("host", "graph")) == "graph",
    )
    clip, ref_s = _voice(synthesizer, options)
    audio = speech(synthesizer, [ids for ids, _ in spoken], ref_s, Noise(int(seed)), manner)
    settings: dict[str, object] = {"seed": int(seed)}
    if dropped := dict.fromkeys(symbol for _, lost in spoken for symbol in lost):
        settings["symbols left out"] = " ".join(f"{symbol} (U+{ord(symbol):04X})" for symbol in dropped)
    if hook is not None and clip is not None:
        settings["similarity"] = float(hook(audio.astype(np.float64), clip, SAMPLE_RATE))
    samples = np.round(np.clip(audio, -1.0, 1.0) * 32767.0).astype(np.int16)[:, np.newaxis]
    return Sound(samples, SAMPLE_RATE, synthesizer.seconds, settings=settings)


def speech(
    synthesizer: Synthesizer,
    texts: list[np.ndarray],
    ref_s: np.ndarray,
    noise: Noise,
    manner: Manner,
) -> np.ndarray:
    """The sentences ``texts``, tokens each, one after the other: float32 (samples,) at 24 kHz. The last samples of
    each are a pulse of the model and are cut, 50 of a single sentence and 100 of each of several."""
    previous, parts = None, []
    for tokens in texts:
        found = synthesizer.speak(tokens, ref_s, noise, manner, previous)
        previous = found.style
        parts.append(found.waveform[: -(SHORT_CUT if len(texts) == 1 else LONG_CUT)])
    return np.concatenate(parts)


def _sentences(options: Mapping[str, str]) -> list[tuple[np.ndarray, tuple[str, ...]]]:
    """Tokens of each sentence with the symbols that were dropped from it."""
    given = [name for name in ("text", "ipa") if options.get(name, "").strip()]
    if len(given) != 1:
        raise UsageError("give either text or ipa (--text or --ipa), and not an empty one")
    whole = options[given[0]]
    parts = sentences(whole) if len(whole) else []
    if given[0] == "text":
        parts = [phonemize(part, options.get("language", "en-us")) for part in parts]
    found = [tokenize(part) for part in parts]
    return [(tokens.ids, tokens.dropped) for tokens in found]


def _voice(synthesizer: Synthesizer, options: Mapping[str, str]) -> tuple[np.ndarray | None, np.ndarray]:
    """The reference clip, if there is one, and ``ref_s``."""
    given = [name for name in ("reference", "ref_s") if name in options]
    if len(given) != 1:
        raise UsageError("give the voice as either reference, a WAV file, or ref_s, a .npy file")
    path = Path(options[given[0]])
    if given[0] == "reference":
        clip = read_clip(path)
        return clip, synthesizer.voice(clip)
    ref_s = read_npy(path)
    if ref_s.size != 256 or ref_s.dtype.kind != "f" or not np.isfinite(ref_s).all():
        raise InputError(
            f"{path}: {ref_s.dtype} of {ref_s.shape}; expected 256 finite floats, acoustic half first"
        )
    return None, ref_s.reshape(256).astype(np.float32)


def similarity(hook: str) -> Similarity:
    """A user's own speaker-similarity model: ``module:function``, called with the speech and the reference clip
    (float64, mono) and their rate in Hz, to give one number. Raises UsageError."""
    module, colon, name = hook.partition(":")
    try:
        found: Any = getattr(import_module(module), name) if colon and name else None
    except (ImportError, AttributeError, ValueError) as error:
        raise UsageError(f"similarity {hook!r} cannot be imported: {error}") from error
    if not callable(found):
        raise UsageError(f"similarity {hook!r}: expected module:function")
    return found


def _choice(options: Mapping[str, str], name: str, choices: tuple[str, ...]) -> str:
    value = options.get(name, choices[0])
    if value not in choices:
        raise UsageError(f"option {name}={value}: choose {' or '.join(choices)}")
    return value


def _number(options: Mapping[str, str], name: str) -> float:
    try:
        return float(options[name])
    except ValueError:
        raise UsageError(f"option {name}={options[name]}: expected a number") from None
