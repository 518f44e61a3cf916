# mypy: ignore-errors
"""Run upstream's StyleTTS 2 on a checkpoint. A script for a process of its own.

``python official.py JOB.npz CHECKPOINT_FOLDER RESULT.npz``, with the packages of ``reference-requirements.txt``
on the path, made by ``make reference-styletts2``. It imports nothing of coreproof.

What runs is ``StyleTTS2.inference`` and ``long_inference_segment`` of the PyPI package ``styletts2``, with
its modules, unchanged. Stand-ins replace the downloads, the phonemizer and the training-only parts, and
``torch.randn`` and ``randn_like`` return the job's noise. JOB holds ``texts`` (JSON: IPA strings), ``clips``
(float32 (n, samples) at 24 kHz), ``voices`` (which clip a text has), ``noise_seed`` and ``dimensions`` (JSON).
RESULT holds what the modules were given and gave, by text: ``t0_...`` and on.
"""

from __future__ import annotations

import contextlib
import io
import json
import math
import sys
from pathlib import Path
from unittest.mock import MagicMock

import numpy as np
import torch

# A mel spectrogram needs nothing of torchaudio's compiled part.
sys.modules["torchaudio._extension"] = MagicMock(_IS_TORCHAUDIO_EXT_AVAILABLE=False)
from transformers import AlbertModel  # noqa: E402, F401  # it looks for what the stand-ins stand in for

for _name in (
    "nltk",
    "nltk.tokenize",
    "librosa",
    "cached_path",
    "langchain",
    "langchain.text_splitter",
    "gruut",
    "matplotlib",
    "matplotlib.pyplot",
):
    sys.modules[_name] = MagicMock()

from styletts2 import models, tts, utils  # noqa: E402
from styletts2.Modules import hifigan  # noqa: E402
from styletts2.Modules.diffusion import sampler as diffusion  # noqa: E402
from styletts2.Utils.PLBERT.util import AlbertConfig, CustomAlbert  # noqa: E402

SAMPLES = 300  # of a frame of F0
HARMONICS = 9
PROBES = 32  # rows of a padded text that are kept
EDGE = 12_000  # samples at either end of a padded waveform that are kept
PARTS = (
    "bert",
    "bert_encoder",
    "predictor",
    "decoder",
    "text_encoder",
    "predictor_encoder",
    "style_encoder",
    "diffusion",
)


class Noise:
    """Standard normal numbers from numpy, in the order in which upstream asks for them."""

    def __init__(self, seed):
        self.generator = np.random.Generator(np.random.PCG64(seed))
        self.fixed = None

    def randn(self, *size, **_):
        assert size == ((1, 256),), size
        return self.draw(1, 256)

    def randn_like(self, tensor, **_):
        if tensor.shape[-1] == HARMONICS:
            return self.draw(*tensor.shape) if self.fixed is None else self.repeated(tensor)
        if tensor.shape == (1, 1, 256):
            return self.draw(1, 1, 256)
        return torch.zeros_like(tensor)  # upstream's second noise, which nothing reads

    def draw(self, *shape):
        return torch.from_numpy(self.generator.standard_normal(shape, np.float32)).to(
            torch.get_default_dtype()
        )

    def repeated(self, tensor):
        """The fixed noise, again and again, for every harmonic as its share of the merged level."""
        period, share = (torch.from_numpy(a).to(tensor.dtype) for a in self.fixed)
        times = math.ceil(tensor.shape[1] / len(period))
        return (period.repeat(times)[: tensor.shape[1], None] * share)[None]


def build(folder, dimensions):
    """Upstream's modules at ``dimensions``, with the checkpoint's weights, as a StyleTTS2 object."""
    whole = torch.load(folder / "epochs_2nd_00020.pth", map_location="cpu", weights_only=True)
    import yaml

    config = yaml.safe_load((folder / "config.yml").read_text())
    params = utils.recursive_munch(config["model_params"])
    bert = CustomAlbert(
        AlbertConfig(
            vocab_size=params.n_token,
            embedding_size=dimensions["bert_embedding"],
            hidden_size=dimensions["bert"],
            num_attention_heads=dimensions["bert"] // 64,
            intermediate_size=dimensions["bert_ffn"],
            max_position_embeddings=512,
            num_hidden_layers=12,
        )
    )
    for training_only in ("MultiPeriodDiscriminator", "MultiResSpecDiscriminator"):
        setattr(models, training_only, lambda: None)
    models.WavLMDiscriminator = lambda *_: None
    nets = models.build_model(params, None, None, bert)
    decoder, style = nets.decoder, params.style_dim
    if (dimensions["inner"], dimensions["asr"]) != (1024, 64):  # upstream's code fixes these two
        inner, asr = dimensions["inner"], dimensions["asr"]
        block = hifigan.AdainResBlk1d
        again = inner + asr + 2
        decoder.encode = block(params.hidden_dim + 2, inner, style)
        decoder.decode = torch.nn.ModuleList(
            [
                *(block(again, inner, style) for _ in range(3)),
                block(again, dimensions["initial"], style, upsample=True),
            ]
        )
        decoder.asr_res = torch.nn.Sequential(
            torch.nn.utils.weight_norm(torch.nn.Conv1d(params.hidden_dim, asr, kernel_size=1))
        )
    for part in PARTS:
        state = {key.removeprefix("module."): value for key, value in whole["net"][part].items()}
        state.pop("embeddings.position_ids", None)
        nets[part].load_state_dict(state)
        nets[part].eval().to(torch.get_default_dtype())
    made = tts.StyleTTS2.__new__(tts.StyleTTS2)
    made.model = utils.Munch({part: nets[part] for part in PARTS})
    made.device, made.model_params = "cpu", params
    made.phoneme_converter = MagicMock(phonemize=lambda text: text)
    tts.word_tokenize = str.split
    return made


class Recorder:
    """What the modules were given and gave, under names, as arrays."""

    def __init__(self, made):
        self.kept = {}
        self.steps = []
        model, predictor = made.model, made.model.predictor
        for module, name in (
            (model.text_encoder, "t_en"),
            (model.bert, "bert_dur"),
            (model.bert_encoder, "d_en"),
            (predictor.text_encoder, "d"),
            (predictor.duration_proj, "pred_dur_log"),
            (model.decoder.generator.m_source, "source"),
        ):
            module.register_forward_hook(self.output(name))
        predictor.text_encoder.register_forward_pre_hook(lambda _, given: self.keep("s", given[1]))
        model.decoder.register_forward_hook(self.decoder)
        curves, denoise = predictor.F0Ntrain, model.diffusion.diffusion.denoise_fn

        def f0n(en, s):
            found = curves(en, s)
            for name, value in zip(("en", "F0", "N"), (en, *found), strict=True):
                self.keep(name, value)
            return found

        def step(x, sigma=None, **more):
            denoised = denoise(x, sigma=sigma, **more)
            self.steps.append((x, float(sigma), denoised))
            return denoised

        predictor.F0Ntrain, model.diffusion.diffusion.denoise_fn = f0n, step
        made.sampler = diffusion.DiffusionSampler(
            model.diffusion.diffusion,
            sampler=diffusion.ADPM2Sampler(),
            sigma_schedule=diffusion.KarrasSchedule(sigma_min=0.0001, sigma_max=3.0, rho=9.0),
            clamp=False,
        )

    def keep(self, name, value):
        self.kept[name] = value.detach()

    def output(self, name):
        return lambda _, given, found: self.keep(name, found[0] if isinstance(found, tuple) else found)

    def decoder(self, _, given, found):
        for name, value in zip(("asr", "F0_curve", "energy", "ref"), given, strict=True):
            self.keep(name, value)
        self.keep("waveform", found)

    def take(self, prefix, *, source=True):
        kept, steps = self.kept, self.steps
        self.kept, self.steps = {}, []
        kept["d_en"] = kept["d_en"].transpose(1, 2)
        kept["har_source"] = kept.pop("source").transpose(1, 2)
        for unused in ("F0_curve", "energy", *(() if source else ("har_source",))):
            kept.pop(unused)
        if steps:
            kept["step_x"] = torch.cat([x for x, _, _ in steps])
            kept["step_sigma"] = torch.tensor([sigma for _, sigma, _ in steps])
            kept["step_denoised"] = torch.cat([found for _, _, found in steps])
        return {f"{prefix}_{name}": value.numpy() for name, value in kept.items()}


def padded(made, recorder, tokens, size, style):
    """Every ``size // PROBES``-th row of what the text modules say of ``tokens`` padded with zeros, which
    they take for symbols, under ``style``: what a graph without masks computes."""
    row = torch.zeros(1, size, dtype=torch.long)
    row[0, : len(tokens)] = tokens
    lengths, nothing = torch.tensor([size]), torch.zeros(1, size, dtype=torch.bool)
    model = made.model
    t_en = model.text_encoder(row, lengths, nothing)
    bert = model.bert(row, attention_mask=torch.ones(1, size, dtype=torch.int))
    d_en = model.bert_encoder(bert).transpose(1, 2)
    d = model.predictor.text_encoder(d_en, style, lengths, nothing)
    logits = model.predictor.duration_proj(model.predictor.lstm(d)[0])
    fixed = model.diffusion.unet.fixed_embedding(bert)
    recorder.kept.clear()
    every = size // PROBES
    return {
        "t_en": t_en[..., ::every],
        "d_en": d_en[..., ::every],
        "d": d[:, ::every],
        "pred_dur_log": logits[:, ::every],
        "fixed_embedding": fixed[:, ::every],
        "bert_dur": bert[:, ::every],
    }


def padded_wave(made, recorder, noise, kept, prefix, size, fixed):
    """Both ends of what the F0 and decoder modules say of features padded with zeros to ``size`` frames."""

    def wide(name, length):
        value = torch.from_numpy(kept[f"{prefix}_{name}"]).to(torch.get_default_dtype())
        return torch.nn.functional.pad(value, (0, length - value.shape[-1]))

    noise.fixed = fixed
    curves = made.model.predictor.F0Ntrain(
        wide("en", size), torch.from_numpy(kept[f"{prefix}_s"]).to(torch.get_default_dtype())
    )
    ref = torch.from_numpy(kept[f"{prefix}_ref"]).to(torch.get_default_dtype())
    wave = made.model.decoder(wide("asr", size), wide("F0", 2 * size), wide("N", 2 * size), ref)
    noise.fixed = None
    recorder.kept.clear()
    every = 2 * size // 512
    return {
        "F0": curves[0][:, ::every],
        "N": curves[1][:, ::every],
        "head": wave[..., :EDGE],
        "tail": wave[..., -EDGE:],
    }


def styles(made, clips):
    """Mel spectrograms of the clips and their styles, as ``compute_style`` makes them of trimmed audio."""
    tts.to_mel = tts.to_mel.to(torch.get_default_dtype())
    found = {}
    halves = []
    for index, (clip, length) in enumerate(zip(*clips, strict=True)):
        wave = torch.from_numpy(clip[:length]).to(torch.get_default_dtype())
        mel = (torch.log(1e-5 + tts.to_mel(wave).unsqueeze(0)) - tts.mean) / tts.std
        own = [getattr(made.model, part)(mel.unsqueeze(1)) for part in ("style_encoder", "predictor_encoder")]
        found[f"v{index}_mel"] = mel.unsqueeze(1).numpy()
        halves.append(torch.cat(own, dim=1))
    found["ref_s"] = torch.cat(halves).numpy()
    return found, halves


def quietly(call, *given, **named):
    with contextlib.redirect_stdout(io.StringIO()):  # upstream prints its symbol table
        return call(*given, **named)


def compute(job, folder):
    """The arrays of RESULT, by name."""
    dimensions, texts = json.loads(str(job["dimensions"])), json.loads(str(job["texts"]))
    made = build(folder, dimensions)
    recorder = Recorder(made)
    noise = Noise(int(job["noise_seed"]))
    torch.randn, torch.randn_like = noise.randn, noise.randn_like
    result, refs = styles(made, (job["clips"], job["clip_lengths"]))
    cleaner = quietly(tts.TextCleaner)
    weight = made.model.decoder.generator.m_source.l_linear.weight.detach().double().numpy()[0]
    fixed = (job["fixed_noise"], weight / math.hypot(*weight))
    for index, text in enumerate(texts):
        noise.generator = np.random.Generator(np.random.PCG64(int(job["noise_seed"]) + index))
        ref_s = refs[int(job["voices"][index])]
        quietly(made.inference, text, ref_s=ref_s)
        tokens = [0, *quietly(cleaner, text)]
        result |= recorder.take(f"t{index}", source=index < int(job["sources"]))
        result[f"t{index}_tokens"] = np.array([tokens], np.int32)
    for name, index, size in json.loads(str(job["unmasked"])):
        style = refs[int(job["voices"][index])][:, :128]
        if name == "text":
            tokens = torch.from_numpy(result[f"t{index}_tokens"][0]).long()
            found = padded(made, recorder, tokens, size, style)
        elif name == "frames":
            found = padded_wave(made, recorder, noise, result, f"t{index}", size, fixed)
        else:
            embedding = torch.from_numpy(result[f"t{index}_bert_dur"]).to(torch.get_default_dtype())
            wide = torch.nn.functional.pad(embedding, (0, 0, 0, size - embedding.shape[1]))
            x = torch.from_numpy(result[f"t{index}_step_x"]).to(torch.get_default_dtype())
            sigma = torch.from_numpy(result[f"t{index}_step_sigma"])
            own = made.model.diffusion.diffusion.denoise_fn
            ref_s = refs[int(job["voices"][index])]
            steps = [
                own(one[None], sigma=s, embedding=wide, features=ref_s)
                for one, s in zip(x, sigma, strict=True)
            ]
            found = {"denoised": torch.cat(steps)}
            recorder.steps = []
        result |= {f"unmasked_{name}{size}_{key}": value.numpy() for key, value in found.items()}
    long = json.loads(str(job["long"]))
    previous = None
    noise.generator = np.random.Generator(np.random.PCG64(int(job["noise_seed"]) + len(texts)))
    for index, text in enumerate(long):
        wave, previous = quietly(
            made.long_inference_segment, text, previous, refs[0], diffusion_steps=5, embedding_scale=2
        )
        result[f"long{index}_waveform"], result[f"long{index}_style"] = wave, previous.numpy()
        recorder.kept, recorder.steps = {}, []
    return result


def main():
    job, folder, result = (Path(argument) for argument in sys.argv[1:4])
    with np.load(job, allow_pickle=False) as stored:
        given = {name: stored[name] for name in stored.files}
    torch.set_default_dtype(getattr(torch, str(given["dtype"])))
    with torch.no_grad():
        arrays = compute(given, folder)
    narrow = {n: a.astype(np.float32) if a.dtype == np.float64 else a for n, a in arrays.items()}
    np.savez(result, allow_pickle=False, **narrow)


if __name__ == "__main__":
    main()
