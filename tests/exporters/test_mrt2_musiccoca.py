"""Prompt text to style codes, on stand-ins for MusicCoCa's files, against the official host code."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from pathlib import Path

import musiccoca_stand_in as stand_in
import numpy as np
import pytest

from coreproof.errors import InputError, UsageError
from coreproof_exporters.mrt2 import pipeline
from coreproof_exporters.mrt2.musiccoca import FILES, MusicCoCa
from coreproof_exporters.mrt2.pipeline import Generator


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    made = tmp_path_factory.mktemp("musiccoca")
    stand_in.write(made)
    return made


@pytest.fixture(scope="module")
def official(folder: Path) -> dict[str, np.ndarray]:
    """What magenta_rt.musiccoca computed on the same files."""
    with np.load(stand_in.FIXTURE, allow_pickle=False) as arrays:
        found = {name: arrays[name] for name in arrays.files}
    assert json.loads(str(found["files"])) == stand_in.digests(folder)
    return found


@pytest.mark.parametrize("kind", ["plain", "mapped"])
def test_embeddings_and_codes_are_the_official_ones(
    folder: Path, official: dict[str, np.ndarray], kind: str
) -> None:
    model = MusicCoCa(folder)
    for text, embedding, codes in zip(stand_in.TEXTS, official[kind], official[f"{kind}_codes"], strict=True):
        found = model.embed(text, mapper=kind == "mapped", seed=stand_in.MAPPER_SEED)
        np.testing.assert_allclose(found, embedding, atol=1e-5)
        assert model.codes(found) == codes.tolist()


def test_the_texts_tell_a_wrong_host_from_a_right_one(official: dict[str, np.ndarray]) -> None:
    plain, mapped = official["plain"], official["mapped"]
    for one, other in ((0, 1), (1, 2), (2, 3)):
        assert np.abs(plain[one] - plain[other]).max() > 0.01
    np.testing.assert_allclose(np.linalg.norm(mapped, axis=1), 1, atol=1e-5)
    assert len({tuple(codes) for codes in official["plain_codes"]}) == len(stand_in.TEXTS)


def test_ids_start_with_one_and_are_lower_case_cut_and_padded(folder: Path) -> None:
    model = MusicCoCa(folder)
    ids, padding = model.ids("Warm JAZZ trio")
    pieces = ["▁warm", "▁jazz", "▁trio"]
    assert ids[:4].tolist() == [1, *(model._vocabulary.PieceToId(p) for p in pieces)]
    assert 0 not in ids[:4]  # nothing was unknown, as capitals would be
    assert not ids[4:].any()
    assert padding.tolist() == [0.0] * 4 + [1.0] * 124
    ids, padding = model.ids("a" * 500)
    assert (len(ids), ids[0], ids.min(), padding.sum()) == (128, 1, 1, 0)


def test_prompts_blend_before_they_become_codes(folder: Path, official: dict[str, np.ndarray]) -> None:
    model = MusicCoCa(folder)
    first, second = stand_in.TEXTS[:2]
    mean = model.blend({first: 0.5, second: 0.5})
    np.testing.assert_allclose(mean, official["plain"][:2].mean(axis=0), atol=1e-5)
    assert model.codes(mean) == official["mean_codes"].tolist()
    assert official["mean_codes"].tolist() not in official["plain_codes"][:2].tolist()


def test_another_mapper_seed_is_another_embedding(folder: Path) -> None:
    model = MusicCoCa(folder)
    one, other = (model.embed("techno", mapper=True, seed=seed) for seed in (5, 6))
    assert np.abs(one - other).max() > 1e-4


def test_a_prompt_is_its_codes(mrt2_build: Path, folder: Path, tmp_path: Path) -> None:
    options = {"precision": "fp32", "musiccoca": str(folder), "prompt": "techno"}
    np.save(tmp_path / "codes.npy", np.array(MusicCoCa(folder).codes(MusicCoCa(folder).embed("techno"))))
    by_text = pipeline.generate(mrt2_build, 0.12, "mil", options)
    by_codes = {"precision": "fp32", "conditioning": str(tmp_path / "codes.npy")}
    np.testing.assert_array_equal(
        by_text.samples, pipeline.generate(mrt2_build, 0.12, "mil", by_codes).samples
    )
    (tmp_path / "prompts.json").write_text('{"techno": 0.25, "funk": 0.75}')
    blended = {**options, "prompts": str(tmp_path / "prompts.json")}
    del blended["prompt"]
    other = pipeline.generate(mrt2_build, 0.12, "mil", {**blended, "mapper": "yes", "mapper_seed": "3"})
    assert not np.array_equal(other.samples, by_text.samples)


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"prompt": "a"}, "needs option musiccoca"),
        ({"prompt": "a", "conditioning": "b"}, "conditioning and prompt: choose one"),
        ({"mapper": "yes"}, "only with prompt or prompts"),
    ],
)
def test_options_that_do_not_go_together(mrt2_build: Path, options: dict[str, str], says: str) -> None:
    with pytest.raises(UsageError, match=says):
        pipeline.generate(mrt2_build, 0.1, "mil", {"precision": "fp32", **options})


@pytest.mark.parametrize("text", ["[1]", '{"a": "b"}', "{", '{"a": 1e999}', "{}"])
def test_another_prompts_file_is_refused(mrt2_build: Path, folder: Path, tmp_path: Path, text: str) -> None:
    (tmp_path / "prompts.json").write_text(text)
    options = {"precision": "fp32", "musiccoca": str(folder), "prompts": str(tmp_path / "prompts.json")}
    with pytest.raises(InputError, match="prompts"):
        pipeline.generate(mrt2_build, 0.1, "mil", options)


def test_codes_of_another_vocabulary_are_refused(mrt2_build: Path) -> None:
    with pytest.raises(InputError, match="style code 48 at level 0: expected 0 to 47"):
        Generator(mrt2_build, "fp32").conditioned([48])


def use(name: str) -> Callable[[MusicCoCa], object]:
    if name == "mapper.tflite":
        return lambda model: model.embed("a", mapper=True)
    return lambda model: model.codes(model.embed("a"))


@pytest.mark.parametrize("name", FILES)
@pytest.mark.parametrize("data", [None, b"", b"\0\0\0\0TFL3" + b"\xff" * 200, "half"], ids=repr)
def test_a_file_that_is_none_is_refused(
    folder: Path, tmp_path: Path, name: str, data: bytes | str | None
) -> None:
    for other in FILES:
        if other != name:
            (tmp_path / other).symlink_to(folder / other)
    if data is not None:
        whole = (folder / name).read_bytes()
        (tmp_path / name).write_bytes(whole[: len(whole) // 2 + 3] if data == "half" else data)
    with pytest.raises(InputError, match=name.replace(".", r"\.")):
        use(name)(MusicCoCa(tmp_path))


def test_models_in_each_others_place_are_refused(folder: Path, tmp_path: Path) -> None:
    for name, other in zip(FILES, (FILES[0], *FILES[:0:-1]), strict=True):
        (tmp_path / name).symlink_to(folder / other)
    model = MusicCoCa(tmp_path)
    with pytest.raises(InputError, match=r"text_encoder\.tflite: inputs of float32, expected int32 ids"):
        model.embed("a")
    with pytest.raises(InputError, match="given float32 of 5 elements"):
        model.codes(np.zeros(5, np.float32))


@pytest.mark.parametrize("module", ["sentencepiece", "ai_edge_litert"])
def test_without_the_extra_it_says_what_to_install(
    folder: Path, monkeypatch: pytest.MonkeyPatch, module: str
) -> None:
    monkeypatch.setitem(sys.modules, module, None)
    monkeypatch.setitem(sys.modules, f"{module}.interpreter", None)
    with pytest.raises(UsageError, match=rf"'{module}.*pip install 'coreproof\[musiccoca\]'"):
        MusicCoCa(folder).codes(MusicCoCa(folder).embed("a"))


@pytest.mark.parametrize("seed", [-1, 1 << 32])
def test_a_mapper_seed_out_of_range_is_refused(folder: Path, seed: int) -> None:
    with pytest.raises(InputError, match="mapper seed"):
        MusicCoCa(folder).embed("a", mapper=True, seed=seed)
