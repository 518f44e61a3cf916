"""Write a synthetic ``epochs_2nd_00020.pth`` with ``config.yml``: the published keys and shapes, drawn weights.

Default initialisation would test nothing: F0 would never pass the voicing threshold, every token would last
25 frames, and the source would not be heard. So a token decides by itself whether it is voiced, how high, and
how long, duration logits share one direction, and spreads are chosen so that style, text, noise and source all
reach the waveform. Phases are sums of F0 over a whole text, so no token hangs between voiced and unvoiced, and
no layer on the way amplifies the rounding of its input much: float32 could not tell a good export from a bad one.
Every number is an integer draw times a factor, and nothing is
computed with a matrix product: the same seed gives the same bytes on every CPU.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from fnmatch import fnmatchcase
from pathlib import Path

import numpy as np

from coreproof.convert.synthetic import bell, check_request, write_note
from coreproof_exporters.styletts2.architecture import HEAD, SIZES, Config
from coreproof_exporters.styletts2.checkpoint import CONFIG, FILE, PARTS

# Key pattern: mean, spread; the first that fits. The spread of what ends in "*" below is a gain, divided
# by the square root of the number of inputs that meet in one output.
_STATISTICS: Mapping[str, tuple[float, float]] = {
    "*LayerNorm.weight": (1.0, 0.1),
    "*layer_norm.weight": (1.0, 0.1),
    "bert.*.bias": (0.0, 0.02),  # twelve passes through one layer add up
    "*.gamma": (1.0, 0.1),
    "*.beta": (0.0, 0.1),
    "bert.embeddings.position*": (0.0, 0.3),
    "bert.embeddings.*": (0.0, 1.0),
    "*.alpha[12].?": (1.0, 0.2),
    "*.alphas.?": (1.0, 0.2),
    "*.fixed_embedding.embedding.weight": (0.0, 1.0),
    "text_encoder.embedding.weight": (0.0, 1.0),
    "*.to_time.0.0.weights": (0.0, 1.0),
    "*lstm*bias_?h_l0*": (0.0, 0.2),
    "predictor.shared.bias_?h_l0*": (0.0, 0.2),
    "decoder.generator.ups.*.weight_g": (1.0, 0.1),
    "decoder.generator.conv_post.weight_g": (0.08, 0.0),
    "*.conv2.weight_g": (0.7, 0.07),
    "decoder.generator.*convs[12].*.weight_g": (0.6, 0.06),
    "*.weight_g": (1.0, 0.1),
    "decoder.generator.m_source.l_linear.bias": (0.02, 0.0),
    "predictor.*_proj.bias": (0.0, 0.1),
    "*.to_out.1.bias": (0.0, 0.02),
    "*_encoder.shared.*.bias": (0.0, 0.03),
    "*.bias": (0.0, 0.1),
}
_GAINS: Mapping[str, float] = {
    "*.weight_v": 1.0,
    "bert.*.dense.weight": 0.25,
    "bert.*.ffn_output.weight": 0.2,
    "*.query.weight": 1.6,
    "*.key.weight": 1.6,
    "*.to_q.weight": 1.6,
    "*.to_kv.weight": 1.6,
    "predictor.text_encoder.lstms.*.fc.weight": 0.7,
    "predictor.text_encoder.lstms.*.weight_ih_l0*": 1.2,
    "predictor.text_encoder.lstms.*.weight_hh_l0*": 0.5,
    "*.fc.weight": 2.0,
    "*lstm*.weight_ih_l0*": 2.0,
    "*lstm*.weight_hh_l0*": 1.0,
    "predictor.shared.weight_ih_l0*": 1.5,
    "predictor.shared.weight_hh_l0*": 0.5,
    "*.to_features.0.weight": 3.0,
    "*.to_out.1.weight": 0.07,
    "*.m_source.l_linear.weight": 3.0,
    "*.noise_convs.*.weight": 8.0,
    "*.unshared.weight": 1.0,
    "*.weight": 1.0,
}

# Features of PL-BERT that tell voicing, height and length, and the middle of each: of the first two in a gap between
# the values of tokens. How hard their relays are driven by the feature, and then each by the one before.
_FEATURES = {"small": (29, 51, 1), "full": (495, 212, 1)}
_CENTRES = {"small": (1.3238, -0.7113, 0.28), "full": (1.046, -0.4424, -2.62)}
_FIRST_GAINS, _LATER_GAINS = (1000.0, 1000.0, 1.5), (20.0, 20.0, 1.0)
_RELAY_GAIN = 0.3  # of a relay behind each norm, or a token that tips over would outweigh all others
_OPEN = 20.0  # bias of a gate: 1 in float32, or 0
_DEAF = (
    0.02  # gain of what moves neither a gate nor a relay, but is not zero, so that int8 has a scale for it
)
_F0_RELAYS, _F0_MIDDLE, _F0_SPREAD = (620.0, 90.0), 75.0, 15.0  # Hz
_QUIET = 0.002  # gain of what would blur the relays
_STEEP = 1.2  # of the logits of one token
_MEAN_DURATION = 1.6  # frames
_DURATION_GAIN, _DURATION_RELAY = 4.0, 9.5
_STYLE_SPREAD = 0.1
# Of a spectral-normed weight's known part, against the greatest singular value of the rest. Below 1 each
# layer amplifies, so that clips stay apart.
_ABOVE = 0.5


def synth(folder: Path, size: str, seed: int) -> None:
    """Write the checkpoint, ``config.yml`` and ``synth.json`` into ``folder``, which is created. ``size``
    is ``small`` or ``full``; ``seed`` is not negative.

    Raises UsageError for another size or seed.
    """
    check_request(size, SIZES, seed)
    folder.mkdir(parents=True, exist_ok=True)
    _save(_tensors(size, seed), folder / FILE)
    (folder / CONFIG).write_text(_config_text(SIZES[size]), encoding="utf-8", newline="\n")
    write_note(folder, "styletts2", size, seed)


def _save(tensors: Mapping[str, np.ndarray], path: Path) -> None:
    import torch

    from coreproof_exporters.styletts2.naming import DENOISER, POSITION_IDS

    net: dict[str, dict[str, torch.Tensor]] = {part: {} for part in PARTS}
    for name, array in tensors.items():
        part, _, key = name.partition(".")
        net[part][f"module.{key}"] = torch.from_numpy(array)
    ids = POSITION_IDS.removeprefix("bert.")
    net["bert"][f"module.{ids}"] = torch.arange(512).reshape(1, 512)
    # Upstream keeps one denoiser under two names.
    own = DENOISER.removeprefix("diffusion.")
    for key, tensor in list(net["diffusion"].items()):
        net["diffusion"][key.replace(f"module.{own}.", "module.diffusion.net.")] = tensor
    torch.save({"net": net, "iters": 0, "val_loss": 0.0, "epoch": 0}, path)


def _tensors(size: str, seed: int) -> dict[str, np.ndarray]:
    from coreproof_exporters.styletts2.naming import shapes

    config = SIZES[size]
    generator = np.random.Generator(np.random.PCG64(seed))
    table = sorted(shapes(config).items())
    drawn = {key: _draw(generator, key, shape) for key, shape in table}
    for key in [key for key in drawn if key.endswith(".weight_orig")]:
        _spectral(drawn, key.removesuffix(".weight_orig"))
    _prosody(drawn, config, size)
    _pitch(drawn, config)
    _durations(drawn, config)
    for part in ("style_encoder", "predictor_encoder"):
        drawn[f"{part}.unshared.weight"] *= _STYLE_SPREAD
    return {key: np.ascontiguousarray(array, np.float32) for key, array in drawn.items()}


def _draw(generator: np.random.Generator, key: str, shape: tuple[int, ...]) -> np.ndarray:
    drawn = bell(generator, shape)
    for pattern, (mean, spread) in _STATISTICS.items():
        if fnmatchcase(key, pattern):
            return drawn * spread + mean
    if key.endswith((".weight_orig", ".weight_u")) or (key.endswith(".weight_v") and len(shape) == 1):
        return drawn  # see _spectral
    gain = next(gain for pattern, gain in _GAINS.items() if fnmatchcase(key, pattern))
    return drawn * (gain / math.sqrt(math.prod(shape[1:])))


def _spectral(drawn: dict[str, np.ndarray], place: str) -> None:
    """A weight whose product with its two vectors is known without an iteration: a rank-one part along
    vectors of signs, over noise."""
    weight = drawn[f"{place}.weight_orig"]
    rows = len(weight)
    columns = weight.size // rows
    left, right = (np.where(drawn[f"{place}.weight_{side}"] < 0, -1.0, 1.0) for side in "uv")
    above = _ABOVE * (math.sqrt(rows) + math.sqrt(columns)) / math.sqrt(rows * columns)
    signs = (left[:, np.newaxis] * right).reshape(weight.shape)
    drawn[f"{place}.weight_orig"] = (weight + above * signs) / math.sqrt(columns)
    drawn[f"{place}.weight_u"] = left / math.sqrt(rows)
    drawn[f"{place}.weight_v"] = right / math.sqrt(columns)


def _prosody(drawn: dict[str, np.ndarray], config: Config, size: str) -> None:
    """What PL-BERT says of a token decides how it is spoken. Units of the LSTMs on the way relay three of its
    features: is it voiced, is it high, with nothing between, and, by degrees, how long is it. Style and the other
    units move all of them."""
    hidden, units = config["hidden"], _relays(config)
    for layer in range(config["layers"]):
        lstm, norm = (f"predictor.text_encoder.lstms.{2 * layer + i}" for i in (0, 1))
        for index, unit in enumerate(units):
            if layer == 0:
                _relay(drawn, lstm, unit, _FEATURES[size][index], _FIRST_GAINS[index], _CENTRES[size][index])
            else:
                _relay(drawn, lstm, unit, unit, _LATER_GAINS[index])
            # The style's gain, less one, and its shift.
            for row, bias in ((unit, _RELAY_GAIN - 1.0), (hidden + unit, 0.0)):
                drawn[f"{norm}.fc.weight"][row] = 0.0
                drawn[f"{norm}.fc.bias"][row] = bias
    for lstm in ("predictor.shared", "predictor.lstm"):
        for unit, gain in zip(units, _LATER_GAINS, strict=True):
            _relay(drawn, lstm, unit, unit, gain)


def _relays(config: Config) -> list[int]:
    """The units for voicing, height and length: the last of those that run forward, because a float32 sum, of F0
    here, is rounded less when its great terms come last."""
    half = config["hidden"] // 2
    return [half - 1, half - 2, half - 3]


def _relay(
    drawn: dict[str, np.ndarray], lstm: str, unit: int, column: int, gain: float, centre: float = 0.0
) -> None:
    """``unit`` of ``lstm``, forward: tanh(tanh(gain (x - centre))) of the input at ``column``, without memory."""
    half = len(drawn[f"{lstm}.bias_ih_l0"]) // 4
    gates = [gate * half + unit for gate in range(4)]  # i, f, g, o
    for name in ("weight_ih", "weight_hh"):
        drawn[f"{lstm}.{name}_l0"][gates] *= _DEAF
    drawn[f"{lstm}.weight_ih_l0"][gates[2]] = 0.0
    drawn[f"{lstm}.weight_ih_l0"][gates[2], column] = gain
    drawn[f"{lstm}.bias_ih_l0"][gates] = (_OPEN, -_OPEN, -gain * centre, _OPEN)
    drawn[f"{lstm}.bias_hh_l0"][gates] = 0.0


def _pitch(drawn: dict[str, np.ndarray], config: Config) -> None:
    """The way of voicing and height from the prosody LSTM to F0, open."""
    relays = _relays(config)[:2]
    for block in range(3):
        drawn[f"predictor.F0.{block}.conv2.weight_g"][relays] = _QUIET
        drawn[f"predictor.F0.{block}.conv2.bias"][relays] = 0.0
    straight = drawn["predictor.F0.1.conv1x1.weight_v"]
    straight[relays] = 0.0
    straight[relays, relays] = 1.0
    drawn["predictor.F0.1.conv1x1.weight_g"][relays] = 1.0
    project = drawn["predictor.F0_proj.weight"]
    project *= _F0_SPREAD
    project[0, relays, 0] = _F0_RELAYS
    drawn["predictor.F0_proj.bias"][:] = _F0_MIDDLE


def _durations(drawn: dict[str, np.ndarray], config: Config) -> None:
    """Logits of a token fall evenly through zero, and move together with the token."""
    weight = drawn["predictor.duration_proj.linear_layer.weight"]
    weight[:] = 0.1 * weight + _DURATION_GAIN * weight[:1]
    weight[:, _relays(config)[2]] = _DURATION_RELAY
    steps = np.arange(len(weight)) + 0.5
    drawn["predictor.duration_proj.linear_layer.bias"][:] = _STEEP * (_MEAN_DURATION - steps)


def _config_text(config: Config) -> str:
    """``config.yml`` with the published names, as far as generation and upstream's builder read it."""

    def row(values: tuple[int, ...]) -> str:
        return f"[{','.join(map(str, values))}]"

    dilations = f"[{', '.join(row(d) for d in config['resblock_dilations'])}]"
    return f"""model_params:
  multispeaker: true
  dim_in: {config["dim_in"]}
  hidden_dim: {config["hidden"]}
  max_conv_dim: {config["hidden"]}
  n_layer: {config["layers"]}
  n_mels: {config["mels"]}
  n_token: {config["tokens"]}
  max_dur: {config["max_dur"]}
  style_dim: {config["style"]}
  dropout: 0.2
  decoder:
    type: hifigan
    resblock_kernel_sizes: {row(config["resblock_kernels"])}
    upsample_rates: {row(config["upsample_rates"])}
    upsample_initial_channel: {config["initial"]}
    resblock_dilation_sizes: {dilations}
    upsample_kernel_sizes: {row(config["upsample_kernels"])}
  slm:
    model: microsoft/wavlm-base-plus
    sr: 16000
    hidden: 768
    nlayers: 13
    initial_channel: 64
  diffusion:
    embedding_mask_proba: 0.1
    transformer:
      num_layers: {config["denoiser_layers"]}
      num_heads: {config["denoiser_heads"]}
      head_features: {HEAD}
      multiplier: {config["denoiser_multiplier"]}
    dist:
      sigma_data: {config["sigma_data"]}
      estimate_sigma_data: true
      mean: -3.0
      std: 1.0
preprocess_params:
  sr: 24000
  spect_params:
    n_fft: 2048
    win_length: 1200
    hop_length: 300
"""
