# mypy: ignore-errors
"""Run the official JAX code of magenta-rt on a checkpoint. A script for an environment of its own.

``python official.py JOB.npz CHECKPOINT.safetensors RESULT.npz``, with ``encoder.safetensors`` beside the
checkpoint or not; made by ``make reference-mrt2``, which
installs ``reference-requirements.txt``. It imports nothing of coreproof.

JOB holds ``config`` (JSON: the dimensions) and arrays: ``conditioning_tokens`` [n, 144]
as a host gives them, ``frame_conditioning`` [T] (which of the n each frame has), ``noise`` [T, 12, codes]
and ``temperature`` to generate the T frames with, ``depth_frames`` [m] (frames whose logits are kept) and
``decoded_frames`` (how many become audio). RESULT holds what the official modules compute from them,
in float32, without quantisation, without bfloat16; and what the conditioning encoder does in float64.
"""

from __future__ import annotations

import dataclasses
import functools
import json
import os
import sys
import types
from pathlib import Path
from unittest.mock import MagicMock

os.environ["JAX_PLATFORMS"] = "cpu"

# Imported by a recurrent layer that no model here has.
for _name in ("", ".common", ".jax", ".jax.layers", ".jax.scan", ".jax.complex_lib"):
    sys.modules[f"recurrentgemma{_name}"] = MagicMock()

import magenta_rt  # noqa: E402  # it puts its own sequence_layers on the path

for _module, _names in (
    ("audio", ("Waveform",)),
    ("musiccoca", ("MusicCoCa", "StyleEmbedding", "StyleTokens")),
):
    # These need TFLite and audio file libraries; the models do not need them.
    _stand_in = types.ModuleType(f"magenta_rt.{_module}")
    for _class in _names:
        setattr(_stand_in, _class, type(_class, (), {}))
    sys.modules[_stand_in.__name__] = _stand_in
    setattr(magenta_rt, _module, _stand_in)

import flax.traverse_util  # noqa: E402
import jax  # noqa: E402
import jax.numpy as jnp  # noqa: E402
import numpy as np  # noqa: E402
import safetensors.flax  # noqa: E402
import sequence_layers.jax as sl  # noqa: E402
from magenta_rt.config import MUSICCOCA, SPECTROSTREAM, ModelSpec  # noqa: E402
from magenta_rt.jax import model, spectrostream, system  # noqa: E402

TOP_K = 40
EDGE = 4  # rows of the waveform's STFT that are kept from each end
SHIFT = system.NUM_RESERVED_TOKENS + 1  # as MagentaRT2System._build_conditioning adds to every token


def depthformer(config, dtype=jnp.float32):
    """The official EncoderDecoder at the dimensions of ``config``."""
    head = {"dim_per_head": config["head_width"], "ffn_use_gated_activation": False}

    class Model(model.get_model_class("mrt2_small")):
        compute_dtype = dtype
        encoder_size = dataclasses.replace(
            model.MagentaRT2ModelSmall.encoder_size, model_dims=config["source_width"]
        )
        decoder_temporal_size = ModelSpec(
            config["layers"], config["width"], config["ffn"], config["heads"], **head
        )
        decoder_depth_size = ModelSpec(
            config["depth_layers"], config["depth_width"], config["depth_ffn"], config["depth_heads"], **head
        )
        spectrostream = dataclasses.replace(
            SPECTROSTREAM, codebook_size=config["codes"], rvq_truncation_level=config["levels"]
        )

        @property
        def input_configs(self):
            style = dataclasses.replace(
                MUSICCOCA, codebook_size=config["style_codes"], embedding_size=config["style_width"]
            )
            return (style, *super().input_configs[1:])

    return Model().depthformer_config().make()


def codec(config):
    """The official SpectroStream at the dimensions of ``config``."""
    whole = spectrostream.stft_spectrostream_40ms_generic_48khz_stereo_config(
        rvq_truncation_level=config["levels"], use_unique_codes=False
    )
    quantizer = dataclasses.replace(
        whole.quantizer,
        num_quantizers=config["quantizers"],
        num_embeddings=config["codes"],
        embedding_dim=config["features"],
        target_num_quantizers=(config["levels"],),
    )
    return dataclasses.replace(
        whole,
        decoder_base_conv_depth=config["base_depth"],
        encoder_base_conv_depth=config["base_depth"] // 2,
        num_features=config["features"],
        quantizer=quantizer,
    ).make()


def encoded_exactly(config, params, tokens):
    """What :func:`encode` gives when the official code computes in float64: [n, 1, S]."""
    with jax.enable_x64(True):
        wide = {"params": jax.tree.map(lambda a: jnp.asarray(a, jnp.float64), {"encoder": params["encoder"]})}
        body = depthformer(config, jnp.float64)
        made = jax.jit(lambda params, tokens: body.apply(params, tokens, method=encode))(wide, tokens)
        return np.asarray(made)


def sequence(values):
    return sl.Sequence.from_values(jnp.asarray(values))


def encode(m, tokens):
    return m.encoder.body.layer(sequence(tokens), training=False).values


def embed(m, tokens):
    return m.decoder.embedder.layer(sequence(tokens), training=False).values


def temporal(m, inputs, source):
    constants = {"source": sequence(source)}
    return m.decoder.temporal_body.layer(sequence(inputs), training=False, constants=constants).values


def depth(m, inputs):
    cap = m.decoder.config.soft_cap_logits
    logits = m.decoder.depth_body.layer(sequence(inputs), training=False).values
    return jnp.tanh(logits / cap) * cap


def first_state(m, source):
    constants = {"source": sequence(jnp.zeros_like(source))}
    return m.decoder.get_initial_state(1, None, training=False, constants=constants)


def step(m, state, source, temperature):
    constants = {
        "source": sequence(source),
        "temperature": jnp.full([1], temperature, jnp.float32),
        "top_k": jnp.full([1], TOP_K, jnp.int32),
    }
    codes, state, _ = m.decoder.step_with_emits(None, state, training=False, constants=constants)
    return codes.values, state


class SharedNoise:
    """Stands in for ``jax.random.gumbel``: at each call the next level's noise, in that level's columns."""

    def __init__(self, noise, reserved):
        self.rows, self.reserved = enumerate(noise), reserved

    def __call__(self, key, shape, dtype):
        level, row = next(self.rows)
        first = self.reserved + level * len(row)
        return jnp.zeros(shape, dtype).at[..., first : first + len(row)].set(row)


def generate(m, params, sources, noise, temperature):
    """Codes [G, levels] that the official step draws with the given noise, and by how much the best
    score beat the second best, float32 [G, levels]."""
    reserved = m.config.decoder.num_reserved_tokens
    apply = functools.partial(m.apply, rngs={"random": jax.random.PRNGKey(0)})
    state = apply({"params": params}, sources[:1][None], method=first_state)

    @jax.jit
    def run(params, state, source, noise):
        own, jax.random.gumbel = jax.random.gumbel, SharedNoise(noise, reserved)
        try:
            (ids, state), sown = apply(
                {"params": params}, state, source, temperature, method=step, mutable=["intermediates"]
            )
        finally:
            jax.random.gumbel = own
        return ids, state, sown["intermediates"]["decoder"]["depth_logits"]

    codes, margins = [], []
    for frame, source in zip(noise, sources, strict=False):
        ids, state, logits = run(params, state, source[None, None], frame)
        codes.append((np.asarray(ids).reshape(-1) - reserved) % frame.shape[1])
        margins.append(
            _margins(np.asarray(logits), frame, temperature, reserved, m.config.decoder.soft_cap_logits)
        )
    return np.array(codes, np.int32), np.array(margins, np.float32)


def _margins(logits, noise, temperature, reserved, cap):
    found = []
    for level, row in enumerate(noise):
        first = reserved + level * len(row)
        own = cap * np.tanh(logits[level].reshape(-1)[first : first + len(row)].astype(np.float64) / cap)
        kept = own >= np.sort(own)[-TOP_K]
        best = np.sort((own + temperature * row)[kept])
        found.append(best[-1] - best[-2])
    return found


def decode(m, codes):
    embeddings = m.quantizer.codes_to_embeddings(sequence(codes))
    rows = m.decoder.layer(embeddings, training=False)
    return embeddings.values, rows.values, m.inverse_stft.layer(rows, training=False).values


def analyse(m, rows, waveform):
    """The encoder on STFT rows, with and without what came before the last frames; then the STFT, the
    embeddings and the codes of a waveform."""
    late = rows[:, rows.shape[1] // 2 :]
    embeddings = m.waveform_to_embeddings(sequence(waveform), training=False)
    return {
        "encoder_embeddings": m.encoder.layer(sequence(rows), training=False).values[0],
        "encoder_embeddings_without_history": m.encoder.layer(sequence(late), training=False).values[0],
        "waveform_stft": m.stft.layer(sequence(waveform), training=False).values[0],
        "waveform_embeddings": embeddings.values[0],
        "waveform_codes": m.quantizer.embeddings_to_codes(embeddings).values[0],
    }


def analysis(config, tree, encoder, rows, waveform):
    """The arrays of RESULT that need ``encoder.safetensors``; none without it."""
    if encoder is None:
        return {}
    params = {**tree["soundstream"], "encoder": encoder["encoder"]}
    found = codec(config).apply({"params": params}, rows, waveform, method=analyse)
    stft = found.pop("waveform_stft")
    # The first and last rows tell how the waveform's ends are padded; all would fill the fixture.
    return {**found, "waveform_stft": jnp.concatenate([stft[:EDGE], stft[-EDGE:]])}


def compute(job, weights, encoder=None):
    """The arrays of RESULT, by name."""
    config = json.loads(str(job["config"]))
    tree = flax.traverse_util.unflatten_dict(weights, sep="/")["params"]
    body, params = depthformer(config), tree["depthformer"]

    def run(*arguments, method):
        compiled = jax.jit(lambda params, *rest: body.apply({"params": params}, *rest, method=method))
        return compiled(params, *arguments)

    tokens = job["conditioning_tokens"][:, None] + SHIFT
    encoded = run(jnp.asarray(tokens), method=encode)[:, 0]
    source = encoded[job["frame_conditioning"]][None]
    codes, margins = generate(body, params, source[0], job["noise"], float(job["temperature"]))
    first = body.config.decoder.num_reserved_tokens + config["codes"] * np.arange(config["levels"])
    start = np.full((1, config["levels"]), body.config.decoder.sos_id)
    embedded = run(
        jnp.asarray(np.concatenate([start, codes + first])[None]), method=embed
    )  # [1, T + 1, 12, D]
    inputs = jnp.mean(embedded, axis=-2)  # the last is what follows the last frame
    feedback, inputs = inputs[0, 1:], inputs[:, :-1]
    outputs = run(inputs, source, method=temporal)
    alone = run(inputs[0][:, None], source[0][:, None], method=temporal)[:, 0]
    elsewhere = run(inputs, jnp.roll(encoded, 1, axis=0)[job["frame_conditioning"]][None], method=temporal)
    chosen = job["depth_frames"]
    depth_inputs = jnp.concatenate([outputs[0][chosen][:, None], embedded[0, 1:][chosen][:, :-1]], axis=1)
    embeddings, rows, audio = codec(config).apply(
        {"params": tree["soundstream"]}, codes[None, : int(job["decoded_frames"])], method=decode
    )
    return {
        "source_encoded": encoded,
        "source_encoded_float64": encoded_exactly(config, params, tokens)[:, 0],
        "temporal_inputs": inputs[0],
        "temporal_feedback": feedback,
        "temporal_outputs": outputs[0],
        "temporal_outputs_without_history": alone,
        "temporal_outputs_other_source": elsewhere[0],
        "depth_inputs": depth_inputs,
        "depth_logits": run(depth_inputs, method=depth),
        "codes": codes,
        "margins": margins,
        "decoder_embeddings": embeddings[0],
        "decoder_stft": rows[0],
        "audio": audio[0],
        **analysis(config, tree, encoder, rows, audio),
    }


def main():
    job, checkpoint, result = (Path(argument) for argument in sys.argv[1:])
    beside = checkpoint.with_name("encoder.safetensors")
    encoder = safetensors.flax.load_file(beside) if beside.is_file() else None
    if encoder is not None:
        encoder = flax.traverse_util.unflatten_dict(encoder, sep="/")["params"]
    with np.load(job, allow_pickle=False) as stored:
        arrays = compute(
            {name: stored[name] for name in stored.files}, safetensors.flax.load_file(checkpoint), encoder
        )
    np.savez(result, allow_pickle=False, **{name: np.asarray(array) for name, array in arrays.items()})


if __name__ == "__main__":
    main()
