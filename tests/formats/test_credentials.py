"""C2PA manifests, read back by c2pa's own reader; the certificates are made here."""

import datetime

import numpy as np
import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from d4s_jax.formats import credentials, images, provenance, video
from tests.formats.test_page import make


def _name(text):
  names = [(NameOID.ORGANIZATION_NAME, text), (NameOID.COMMON_NAME, text)]
  return x509.Name([x509.NameAttribute(kind, value) for kind, value in names])


def _certificate(subject, issuer, key, signing_key, authority):
  now = datetime.datetime.now(datetime.UTC)
  use = dict.fromkeys(
    ("content_commitment", "key_encipherment", "data_encipherment", "key_agreement",
     "encipher_only", "decipher_only"), False)  # fmt: skip
  use |= {"digital_signature": not authority, "key_cert_sign": authority, "crl_sign": authority}
  builder = (
    x509.CertificateBuilder()
    .subject_name(_name(subject))
    .issuer_name(_name(issuer))
    .public_key(key.public_key())
    .serial_number(x509.random_serial_number())
    .not_valid_before(now - datetime.timedelta(days=1))
    .not_valid_after(now + datetime.timedelta(days=1))
    .add_extension(x509.BasicConstraints(authority, None), True)
    .add_extension(x509.KeyUsage(**use), True)
    .add_extension(x509.SubjectKeyIdentifier.from_public_key(key.public_key()), False)
    .add_extension(
      x509.AuthorityKeyIdentifier.from_issuer_public_key(signing_key.public_key()), False
    )
  )
  if not authority:
    mail = x509.ExtendedKeyUsage([ExtendedKeyUsageOID.EMAIL_PROTECTION])
    builder = builder.add_extension(mail, False)
  return builder.sign(signing_key, hashes.SHA256()).public_bytes(serialization.Encoding.PEM)


@pytest.fixture(scope="module")
def signer(tmp_path_factory):
  """Files of a chain of certificates and of the private key of its first."""
  folder = tmp_path_factory.mktemp("signer")
  root, own = (ec.generate_private_key(ec.SECP256R1()) for _ in range(2))
  chain = _certificate("A studio", "A root", own, root, False)
  chain += _certificate("A root", "A root", root, root, True)
  (folder / "chain.pem").write_bytes(chain)
  plain = serialization.NoEncryption()
  pem, form = serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8
  (folder / "key.pem").write_bytes(own.private_bytes(pem, form, plain))
  return folder / "chain.pem", folder / "key.pem"


@pytest.fixture
def files(tmp_path):
  facts = provenance.facts(make()[1])
  frames = np.random.default_rng(0).random((3, 32, 32, 3), dtype=np.float32)
  for name in ("a.png", "a.jpg", "a.webp"):
    images.write_image(tmp_path / name, frames[0])
    provenance.stamp(tmp_path / name, facts)
  for name in ("all.gif", "all.webp"):
    video.write_video(tmp_path / name, frames, 8)
    provenance.stamp(tmp_path / name, facts)
  video.write_video(tmp_path / "a.mp4", frames, 8, provenance.text(facts))
  return tmp_path, facts


@pytest.mark.parametrize("name", ["a.png", "a.jpg", "a.webp", "all.gif", "all.webp", "a.mp4"])
def test_a_signed_file_says_who_made_it(name, files, signer):
  folder, facts = files
  assert credentials.read(folder / name) is None
  credentials.sign(folder / name, *signer)
  found = credentials.read(folder / name)
  assert (found["signer"], found["state"]) == ("A studio", "Valid")
  assert found["facts"] == {key: x for key, x in facts.items()}
  # It still is a file of its kind.
  if name == "a.mp4":
    assert len(video.read_video(folder / name)) == 3
  else:
    assert images.read_image(folder / name).shape == (32, 32, 3)
  assert provenance.read(folder / name) == facts


def test_an_edit_breaks_it(files, signer):
  path = files[0] / "a.png"
  credentials.sign(path, *signer)
  contents = bytearray(path.read_bytes())
  contents[contents.index(b"IDAT") + 40] ^= 1
  path.write_bytes(contents)
  assert credentials.read(path)["state"] == "Invalid"


def test_what_cannot_be_signed_is_refused(files, signer, tmp_path):
  folder, _ = files
  (folder / "a.ply").write_text("ply")
  with pytest.raises(ValueError, match=r"a.ply can't be signed; expected one of .mp4"):
    credentials.sign(folder / "a.ply", *signer)
  images.write_image(folder / "b.png", np.zeros((8, 8, 3), np.float32))
  with pytest.raises(ValueError, match="says nothing of its origin"):
    credentials.sign(folder / "b.png", *signer)
  (folder / "no.pem").write_text("nothing")
  before = (folder / "a.png").read_bytes()
  with pytest.raises(ValueError, match=r"can't be signed with .*no.pem"):
    credentials.sign(folder / "a.png", folder / "no.pem", signer[1])
  assert (folder / "a.png").read_bytes() == before
  assert not list(folder.glob(".a*"))
