"""The expected tensors, by the official implementation.

``TangoFlux`` of the PyPI package tangoflux 0.1.0 with its own ``inference_flow``, whose transformer is
diffusers' ``FluxTransformer2DModel`` and whose encoder is transformers' ``T5EncoderModel``, and diffusers'
``AutoencoderOobleck``. The loop runs in float32, as its own; what single stages are judged by is computed
by the same modules in float64. Nothing of this recipe's torch modules takes part.
"""

from __future__ import annotations

import hashlib
import sys
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import torch
from diffusers import AutoencoderOobleck
from diffusers.utils import logging as diffusers_logging
from safetensors.torch import load_file
from torch import Tensor
from transformers import PreTrainedTokenizerFast, T5Config, T5EncoderModel
from transformers.utils import logging

from coreproof.convert.checkpoint import json_object
from coreproof.errors import FixtureError
from coreproof.parity.suite import Reference
from coreproof_exporters.tangoflux.architecture import AUDIO_CHANNELS, BUCKETS, TEXT_ROWS, TIED, Config
from coreproof_exporters.tangoflux.checkpoint import CONFIG, TOKENIZER, VAE, WEIGHTS, load

PROMPTS = ("", "rain with distant thunder", "a dog barks twice while an old tram passes")
DURATIONS = (10.0, 23.7)  # of the second and the third prompt
STEPS = 25
GUIDANCE = 4.5
NOISE_SEED = 20260101
JUDGED_STEPS = (0, 6, 12, 18, 24)  # of the second prompt
OTHER_STEP = 12  # of the third prompt, and of what is left out in turn
PUBLISHED_STEPS = (6, 18)

_INSTALL = "python -m pip install --no-deps tangoflux==0.1.0"
_PACKAGES = ("diffusers", "tangoflux", "tokenizers", "torch", "transformers")


@dataclass
class _Run:
    """What a call of ``inference_flow`` gave its transformer, and the latents after each step."""

    pooled: Tensor
    context: Tensor
    timesteps: list[Tensor] = field(default_factory=list)
    latents: list[Tensor] = field(default_factory=list)


def compute(checkpoint: Path) -> Reference:
    """Run the official code on the snapshot folder (or ``tangoflux.safetensors``) given.

    S audio rows, C the text's width. ``input_ids``, ``attention_mask`` int32 [3, 64] of PROMPTS; the rest
    float32: ``text_hidden`` [3, 64, C]; for the second and third prompt beside the first, ``durations`` [2],
    ``pooled_projections`` [2, 2, C] and ``encoder_hidden_states`` [2, 2, 65, C], whose rows beyond the
    prompt's length are padding; ``noise`` [1, S, 64], ``timesteps`` [25] and ``latents`` [25, S, 64] after
    each step; ``noise_pred`` [6, 2, S, 64] at JUDGED_STEPS, then at OTHER_STEP with the third prompt;
    ``published_noise_pred`` [2, 2, S, 64] of inputs rounded to fp16, padding attended; at OTHER_STEP
    ``without_positions``, ``without_mask``, ``other_token``, ``other_timestep`` [2, S, 64];
    ``text_stream_peak``; ``audio`` [2, samples] of the last latents; ``dimensions`` as JSON's numbers.

    Raises CheckpointError for a checkpoint that the recipe refuses, FixtureError when the package
    tangoflux is not installed, or when the official classes find other keys.
    """
    config = load(checkpoint).config
    folder = checkpoint if checkpoint.is_dir() else checkpoint.parent
    with _quiet():
        model = _official(folder, config)
        arrays = _arrays(model, folder, config)
    return Reference(arrays, _provenance(config))


def _arrays(model: Any, folder: Path, config: Config) -> dict[str, Any]:
    torch.manual_seed(NOISE_SEED)
    noise = torch.randn(1, config["audio_rows"], config["channels"])
    runs = [
        _inference(model, prompt, duration, steps)
        for prompt, duration, steps in zip(PROMPTS[1:], DURATIONS, (STEPS, 1), strict=True)
    ]
    swapped = _swapped(model, PROMPTS[1], PROMPTS[2])
    batch = model.tokenizer(list(PROMPTS), max_length=TEXT_ROWS, padding="max_length", return_tensors="pt")
    text, peak = _text(model.text_encoder.double(), batch)
    model.text_encoder = None
    arrays: dict[str, Any] = {
        "input_ids": batch.input_ids.to(torch.int32),
        "attention_mask": batch.attention_mask.to(torch.int32),
        "text_hidden": text,
        "text_stream_peak": torch.tensor(peak),
        "durations": torch.tensor(DURATIONS),
        "pooled_projections": torch.stack([run.pooled for run in runs]),
        "encoder_hidden_states": torch.stack([_padded(run, text[[0, i + 1]]) for i, run in enumerate(runs)]),
        "noise": noise,
        "timesteps": torch.cat(runs[0].timesteps),
        "latents": torch.cat(runs[0].latents),
    }
    transformer = model.transformer.double()
    arrays |= _steps(transformer, runs, swapped, noise, arrays["encoder_hidden_states"])
    model.transformer = None
    arrays["audio"] = _audio(folder, config, runs[0].latents[-1])
    return {
        name: a.numpy() if a.dtype == torch.int32 else a.to(torch.float32).numpy()
        for name, a in arrays.items()
    }


def _official(folder: Path, config: Config) -> Any:
    """The official model with the checkpoint's weights; its encoder and tokenizer built from the folder
    instead of fetched."""
    tangoflux = _package()
    text = T5Config(
        vocab_size=config["vocabulary"],
        d_model=config["context_width"],
        d_kv=config["text_head_width"],
        d_ff=config["text_inner"],
        num_layers=config["text_layers"],
        num_heads=config["text_heads"],
        relative_attention_num_buckets=BUCKETS,
        feed_forward_proj="gated-gelu",
    )
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_file=str(folder / TOKENIZER),
        pad_token="<pad>",
        eos_token="</s>",
        unk_token="<unk>",
        model_max_length=512,
    )
    kept = tangoflux.T5EncoderModel, tangoflux.T5TokenizerFast
    tangoflux.T5EncoderModel = SimpleNamespace(from_pretrained=lambda _: T5EncoderModel(text))
    tangoflux.T5TokenizerFast = SimpleNamespace(from_pretrained=lambda _: tokenizer)
    try:
        model = tangoflux.TangoFlux(json_object(folder / CONFIG))
    finally:
        tangoflux.T5EncoderModel, tangoflux.T5TokenizerFast = kept
    found = model.load_state_dict(load_file(folder / WEIGHTS), strict=False)
    if found.unexpected_keys or set(found.missing_keys) - {TIED}:
        raise FixtureError(f"TangoFlux misses {found.missing_keys} and does not know {found.unexpected_keys}")
    return model.eval().requires_grad_(False)


def _package() -> Any:
    """``tangoflux.model``, which also trains and for that imports a library that inference never calls."""
    if find_spec("tangoflux") is None:
        raise FixtureError(f"the official code is not installed; run {_INSTALL}")
    absent = find_spec("datasets") is None
    if absent:
        stand_in = ModuleType("datasets")
        stand_in.load_dataset = stand_in.Audio = None  # type: ignore[attr-defined]
        sys.modules["datasets"] = stand_in
    try:
        import tangoflux.model as package
    finally:
        if absent:
            del sys.modules["datasets"]
    return package


def _inference(model: Any, prompt: str, duration: float, steps: int) -> _Run:
    """The official loop from the shared noise, watched."""
    run: list[_Run] = []
    latents: list[Tensor] = []

    def given(_: Any, args: tuple[Any, ...], inputs: dict[str, Any]) -> None:
        if not run:
            run.append(_Run(inputs["pooled_projections"], inputs["encoder_hidden_states"]))
        run[0].timesteps.append(inputs["timestep"])

    scheduler = model.noise_scheduler
    step = scheduler.step

    def stepped(*args: Any, **inputs: Any) -> Any:
        made = step(*args, **inputs)
        latents.append(made.prev_sample)
        return made

    hook = model.transformer.register_forward_pre_hook(given, with_kwargs=True)
    scheduler.step = stepped
    torch.manual_seed(NOISE_SEED)
    try:
        model.inference_flow(
            prompt,
            num_inference_steps=steps,
            guidance_scale=GUIDANCE,
            duration=duration,
            disable_progress=True,
        )
    finally:
        hook.remove()
        del scheduler.step
    run[0].latents = latents
    return run[0]


def _swapped(model: Any, prompt: str, source: str) -> _Run:
    """The run of ``prompt`` with its second token replaced by that of ``source``."""
    tokenizer, other = model.tokenizer, model.tokenizer(source).input_ids[1]

    class Swapping:
        model_max_length = tokenizer.model_max_length

        def __call__(self, texts: list[str], **options: Any) -> Any:
            batch = tokenizer(texts, **options)
            if texts == [prompt]:
                batch.input_ids[0, 1] = other
            return batch

    model.tokenizer = Swapping()
    try:
        return _inference(model, prompt, DURATIONS[0], 1)
    finally:
        model.tokenizer = tokenizer


def _text(encoder: Any, batch: Any) -> tuple[Tensor, float]:
    """Rows of all prompts, padding included, and the greatest magnitude in the stream before its last norm."""
    peaks: list[float] = []
    hook = encoder.encoder.final_layer_norm.register_forward_pre_hook(
        lambda _, inputs: peaks.append(float(inputs[0].abs().max()))
    )
    with torch.no_grad():
        hidden = encoder(input_ids=batch.input_ids, attention_mask=batch.attention_mask)[0]
    hook.remove()
    return hidden, peaks[0]


def _padded(run: _Run, text: Tensor) -> Tensor:
    """The run's context (2, 65, C), with rows of padding between the prompt and the duration."""
    count = run.context.shape[1] - 1
    return torch.cat([run.context[:, :count], text[:, count:].to(torch.float32), run.context[:, count:]], 1)


def _steps(
    transformer: Any, runs: list[_Run], swapped: _Run, noise: Tensor, padded: Tensor
) -> dict[str, Tensor]:
    def step(
        index: int,
        run: _Run,
        context: Tensor | None = None,
        *,
        turned: bool = True,
        time: int | None = None,
        half: bool = False,
    ) -> Tensor:
        before = runs[0].latents[index - 1] if index else noise
        given = (before.repeat(2, 1, 1), run.context if context is None else context, run.pooled)
        timestep = runs[0].timesteps[index if time is None else time]
        if half:
            *given, timestep = (t.half() for t in (*given, timestep))  # type: ignore[assignment]
        latents, text, pooled = (t.double() for t in given)
        positions = torch.arange(latents.shape[1], dtype=torch.float64)[:, None].repeat(1, 3)
        with torch.no_grad():
            return transformer(
                hidden_states=latents,
                timestep=timestep,
                pooled_projections=pooled,
                encoder_hidden_states=text,
                txt_ids=torch.zeros(text.shape[1], 3),
                img_ids=positions if turned else positions * 0,
                return_dict=False,
            )[0]

    judged = [step(index, runs[0]) for index in JUDGED_STEPS]
    return {
        "noise_pred": torch.stack([*judged, step(OTHER_STEP, runs[1])]),
        "published_noise_pred": torch.stack(
            [step(i, runs[0], padded[0], half=True) for i in PUBLISHED_STEPS]
        ),
        "without_positions": step(OTHER_STEP, runs[0], turned=False),
        "without_mask": step(OTHER_STEP, runs[0], padded[0]),
        "other_token": step(OTHER_STEP, swapped),
        "other_timestep": step(OTHER_STEP, runs[0], time=OTHER_STEP + 1),
    }


def _audio(folder: Path, config: Config, latents: Tensor) -> Tensor:
    widths = config["vae_widths"]
    strides = [int(stride) for stride in config["vae_strides"]]
    vae: Any = AutoencoderOobleck(
        encoder_hidden_size=widths[-1],
        decoder_channels=widths[-1],
        decoder_input_channels=config["channels"],
        downsampling_ratios=strides[::-1],
        channel_multiples=[w // widths[-1] for w in widths[-2::-1]],
        audio_channels=AUDIO_CHANNELS,
    )
    vae.load_state_dict(load_file(folder / VAE))
    with torch.no_grad():
        return vae.double().eval().decode(latents.transpose(2, 1).double()).sample[0]


def _provenance(config: Mapping[str, Any]) -> dict[str, object]:
    return {
        "implementation": "tangoflux TangoFlux.inference_flow; diffusers FluxTransformer2DModel, "
        "AutoencoderOobleck; transformers T5EncoderModel",
        "packages": {name: version(name).partition("+")[0] for name in _PACKAGES},
        "computed_in": "latents, pooled_projections and encoder_hidden_states in float32, the rest in float64",
        "stored_in": "float32",
        "config": {key: list(v) if isinstance(v, tuple) else v for key, v in config.items()},
        "steps": STEPS,
        "guidance_scale": GUIDANCE,
        "noise": f"torch.manual_seed({NOISE_SEED})",
        "prompts_sha256": hashlib.sha256("\n".join(PROMPTS).encode()).hexdigest(),
    }


@contextmanager
def _quiet() -> Iterator[None]:
    """No notes from transformers and diffusers inside; their settings as before outside."""
    kept = [(module, module.get_verbosity()) for module in (logging, diffusers_logging)]
    for module, _ in kept:
        module.set_verbosity_error()
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", ".*weight_norm.*", FutureWarning)
            yield
    finally:
        for module, level in kept:
            module.set_verbosity(level)
