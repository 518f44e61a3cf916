"""Phonemes to tokens: the symbol table of upstream's ``text_utils.py``, and how text becomes phonemes."""

from __future__ import annotations

import shutil
import subprocess
from dataclasses import dataclass

import numpy as np

from coreproof.errors import InputError, UsageError

MOST_TOKENS = 512
PAD = 0

_PUNCTUATION = ';:,.!?¡¿—…"«»“” '
_LETTERS = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz"
_IPA = (
    "ɑɐɒæɓʙβɔɕçɗɖðʤəɘɚɛɜɝɞɟʄɡɠɢʛɦɧħɥʜɨɪʝɭɬɫɮʟɱɯɰŋɳɲɴøɵɸθœɶʘɹɺɾɻʀʁɽʂʃʈʧʉʊʋⱱʌɣɤʍχʎʏʑʐʒʔʡʕʢǀǁǂǃˈˌːˑʼʴʰʱʲʷˠˤ˞↓↑→↗↘"
    "'\u0329'ᵻ"
)
# The apostrophe is there twice, and the later place counts.
TABLE = {symbol: place for place, symbol in enumerate(["$", *_PUNCTUATION, *_LETTERS, *_IPA])}

_SENTENCE_END = ".!?…"
_CLOSING = "\"'”»)"


@dataclass(frozen=True, slots=True)
class Tokens:
    """``ids``: int32 (L,), the pad first. ``dropped``: the symbols that have no id, in order, each once."""

    ids: np.ndarray
    dropped: tuple[str, ...]


def tokenize(ipa: str) -> Tokens:
    """The tokens of phonemes. What the table lacks is left out, as upstream does, and reported.

    Raises InputError when nothing is left but spaces, and for more than 512 tokens.
    """
    ids = [TABLE[symbol] for symbol in ipa if symbol in TABLE]
    dropped = tuple(dict.fromkeys(symbol for symbol in ipa if symbol not in TABLE))
    if not any(index > TABLE[" "] for index in ids):
        shown = f"; unknown: {' '.join(dropped[:10])}" if dropped else ""
        raise InputError(f"no phoneme of the model's {len(TABLE)} symbols in {ipa[:40]!r}{shown}")
    if len(ids) + 1 > MOST_TOKENS:
        raise InputError(
            f"{len(ids) + 1} tokens with the start, at most {MOST_TOKENS}: give shorter sentences, each ending in "
            f"one of {' '.join(_SENTENCE_END)}"
        )
    return Tokens(np.array([PAD, *ids], np.int32), dropped)


def sentences(text: str) -> list[str]:
    """``text`` cut behind what ends a sentence; one that is empty after that is left out."""
    found, begin = [], 0
    for place, symbol in enumerate(text):
        following = text[place + 1 : place + 2]
        ends = symbol in _SENTENCE_END or (
            symbol in _CLOSING and text[place - 1 : place] in tuple(_SENTENCE_END)
        )
        if ends and (not following or following.isspace()):
            found.append(text[begin : place + 1].strip())
            begin = place + 1
    found.append(text[begin:].strip())
    return [part for part in found if part]


def phonemize(text: str, language: str = "en-us") -> str:
    """``text`` as IPA by espeak-ng, punctuation kept.

    The words between two marks go through espeak-ng together; marks are put back where they were, without
    a space before them. Upstream's demo joins the tokens of a treebank tokenizer with spaces instead, so
    that a mark stands alone there. Raises UsageError when espeak-ng is not installed or fails.
    """
    program = shutil.which("espeak-ng")
    if program is None:
        raise UsageError(
            "text needs espeak-ng, which is not installed (Debian: apt-get install espeak-ng); or give phonemes "
            "with --ipa"
        )
    pieces, words = [], ""
    for symbol in " ".join(text.split()):
        if symbol in _PUNCTUATION.strip():
            pieces.append(_spoken(program, words, language) + symbol)
            words = ""
        else:
            words += symbol
    pieces.append(_spoken(program, words, language))
    return "".join(pieces).strip()


def _spoken(program: str, words: str, language: str) -> str:
    """``words`` as IPA, with the spaces that were around them."""
    if not words.strip():
        return words
    command = [program, "-q", "--ipa", "-v", language, "--stdin"]
    done = subprocess.run(command, input=words.strip(), capture_output=True, text=True, check=False)
    if done.returncode:
        said = (done.stderr.strip() or "no message").splitlines()[-1]
        raise UsageError(f"espeak-ng failed with status {done.returncode}: {said}")
    ipa = " ".join(line.strip() for line in done.stdout.splitlines() if line.strip())
    before = " " if words[0] == " " else ""
    return before + ipa + (" " if words[-1] == " " else "")
