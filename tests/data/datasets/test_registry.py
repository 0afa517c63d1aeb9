import pathlib
import zipfile

import pytest

import d4s_jax.data
from d4s_jax.data.datasets.registry import DATASETS, listing, open_dataset
from tests.support import run_command

README = pathlib.Path(d4s_jax.data.__file__).with_name("README.md").read_text()


@pytest.mark.parametrize("name", sorted(DATASETS))
def test_every_line_is_told_where_people_look(name):
  line = DATASETS[name]
  assert line.page.startswith("https://") and line.licence and line.size
  assert "/" in line.layout and len(line.layout) < 100
  text = listing()
  for part in (name, line.title, line.offers, line.licence, line.page, line.size, line.layout):
    assert part in text
  assert f"[`{name}`](datasets/{name}.py) ([page]({line.page}))" in README
  (row,) = [x for x in README.splitlines() if f"[`{name}`]" in x]
  assert f" {line.size} |" in row
  for word in ("depth", "tracks", "about metric", "static", "dynamic"):
    assert (f"{word}," in row or f"{word} |" in row) == (word in line.offers)


def test_offers_in_words():
  assert DATASETS["tartanair"].offers == "2 cameras, depth, metric, static"
  assert DATASETS["realestate10k"].offers == "1 camera, of unknown scale, static"
  assert DATASETS["stereo4d"].offers == "2 cameras, tracks, about metric, dynamic"


def test_unknown_names_and_empty_folders(tmp_path):
  with pytest.raises(ValueError, match="Unknown dataset 'kubric'; choose one of dynamicreplica, m"):
    open_dataset("kubric", tmp_path)
  with pytest.raises(NotADirectoryError, match="No folder at .*none"):
    open_dataset("spring", tmp_path / "none")


def test_archives_are_not_unpacked(tmp_path):
  """Neither one that is named nor those in a folder: what climbs out of them can't do harm."""
  path = tmp_path / "set" / "office.zip"
  path.parent.mkdir()
  with zipfile.ZipFile(path, "w") as archive:
    archive.writestr("../pose_left.txt", "0 0 0 0 0 0 1")
  with pytest.raises(NotADirectoryError, match="office.zip is a file.*unpack it yourself"):
    open_dataset("tartanair", path)
  with pytest.raises(ValueError, match="Unpack office.zip first; archives are not read. TartanAir"):
    open_dataset("tartanair", path.parent)
  assert [x.name for x in tmp_path.rglob("*")] == ["set", "office.zip"]
  with pytest.raises(SystemExit):
    run_command("curate", "--dataset=tartanair", f"--source={path}", f"--output={tmp_path}/out")
  assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("name", sorted(DATASETS))
def test_an_empty_folder_is_told_the_layout_and_the_page(name, tmp_path):
  with pytest.raises(ValueError, match=f"{tmp_path} holds no .*; expected .*{DATASETS[name].page}"):
    open_dataset(name, tmp_path)
