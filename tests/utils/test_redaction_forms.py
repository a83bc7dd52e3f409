"""Values of the environment are found as YAML, a path and a longer word have them."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import yaml
from omegaconf import OmegaConf

from tests.command_line import Ended
from xftrain.config.compose import compose, validate
from xftrain.errors import ConfigError
from xftrain.utils.read_variables import READ
from xftrain.utils.redaction import hidden, without_secrets

SHOWN = "${oc.env:XFTRAIN_TEST_SECRET}"


@pytest.fixture(autouse=True)
def _nothing_read(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    for name in ("values", "decoded", "words"):
        monkeypatch.setattr(READ, name, {})
    yield


@pytest.fixture
def secret(monkeypatch: pytest.MonkeyPatch) -> Callable[[str], str]:
    def hold(value: str) -> str:
        monkeypatch.setenv("XFTRAIN_TEST_SECRET", value)
        return value

    return hold


@pytest.mark.parametrize("value", ["it's: zzQQ9 'x'", "wd9 " * 60 + "END7", "ab\tc7\x1bd é" * 30])
def test_a_printed_configuration_has_no_form_of_a_secret(
    command: Callable[..., Ended], secret: Callable[[str], str], value: str
) -> None:
    secret(value)
    word = f"tags=['{SHOWN}']"
    ended = command("--cfg", "job", "--resolve", word)
    assert ended.code == 0, ended.err
    assert yaml.safe_load(ended.out)["tags"] == [SHOWN]
    assert not any(part in ended.out for part in ("zzQQ9", "wd9", "END7", "c7"))


def test_a_path_is_hidden_in_any_form_of_it(
    secret: Callable[[str], str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    secret("txtQ9//./dirZ8/")
    cfg = compose("data=text", f"data.path={SHOWN}", "data.tokenizer=bytes")
    options = {"data": {"path": str(Path(cfg.data.path))}}
    assert options["data"]["path"] == "txtQ9/dirZ8"
    for text in ("txtQ9/dirZ8", str(tmp_path / "txtQ9" / "dirZ8"), "txtQ9//./dirZ8/"):
        assert "txtQ9" not in hidden(f"at {text}: none")
    assert without_secrets(cfg, options) == {"data": {"path": SHOWN}}
    other = {"data": {"path": "/anything/else"}}
    assert without_secrets(cfg, other) == {"data": {"path": SHOWN}}


@pytest.mark.parametrize("value", ["./1", "..", "./", "a/sdpa/.."])
def test_a_path_of_public_words_hides_no_other_text(
    secret: Callable[[str], str], value: str
) -> None:
    READ.values["XFTRAIN_TEST_SECRET"] = value
    assert hidden("step 1 of sdpa in .. at 1.0") == "step 1 of sdpa in .. at 1.0"


@pytest.mark.parametrize("value", ["q7z", "k", "1234567"])
def test_a_short_secret_is_hidden_in_the_word_that_it_is_a_part_of(
    secret: Callable[[str], str], value: str
) -> None:
    secret(value)
    with pytest.raises(ConfigError) as refused:
        validate(compose("data=text", f"data.path='/nonexist/pre{SHOWN}suf/${{seq}}x'"))
    assert f"pre{value}suf" in str(refused.value)
    said = hidden(str(refused.value))
    assert f"/nonexist/pre{SHOWN}suf/" in said and f"pre{value}suf" not in said
    assert hidden(f"max{value}y") == f"max{value}y"  # a word that nobody composed


@pytest.mark.parametrize("first", ["ab1", "k", "1234567", "a-longer-one"])
@pytest.mark.parametrize("last", ["cd2", "longsecret7", "9876543"])
def test_a_word_of_two_secrets_shows_neither(
    monkeypatch: pytest.MonkeyPatch, first: str, last: str
) -> None:
    # the word was shown with the name of one of them, and with the other's value
    monkeypatch.setenv("XFTRAIN_TEST_A", first)
    monkeypatch.setenv("XFTRAIN_TEST_B", last)
    (word,) = compose("tags=['${oc.env:XFTRAIN_TEST_A}${oc.env:XFTRAIN_TEST_B}x']").tags
    assert word == f"{first}{last}x"
    said = hidden(f"of {word}")
    assert said.startswith("of ${oc.env:XFTRAIN_TEST_A}") and first not in said[28:]
    assert last not in said


def test_a_short_word_that_has_a_secret_in_it_is_looked_for_by_itself(
    secret: Callable[[str], str],
) -> None:
    secret("k")
    assert list(compose(f"tags=['a{SHOWN}','long{SHOWN}er']").tags) == ["ak", "longker"]
    assert hidden("bake ak") == f"bake a{SHOWN}"
    assert hidden("a longkerness") == f"a long{SHOWN}erness"


def test_a_text_with_many_secrets_and_names_takes_no_minutes(secret: Callable[[str], str]) -> None:
    secret("/home/bob")
    assert list(compose(f"tags=['{SHOWN}']").tags) == ["/home/bob"]
    text = (SHOWN * 14 + "/home/bob " * 19) * 1500  # quadratic, it took half a minute
    begin = time.monotonic()
    assert "/home/bob" not in hidden(text) and hidden(SHOWN) == SHOWN
    assert time.monotonic() - begin < 5


@pytest.mark.parametrize("before", ["", "a", "ab", "abc"])
@pytest.mark.parametrize("after", ["d", "de", "def"])
def test_the_word_of_a_secret_ends_where_its_letters_do(
    secret: Callable[[str], str], before: str, after: str
) -> None:
    secret("k")
    assert compose(f"ckpt='x/{before}{SHOWN}{after}/y'").ckpt == f"x/{before}k{after}/y"
    assert hidden(f"{before}k{after}").count("${oc.env:") == 1
    assert hidden(f"({before}k{after})").endswith(f"}}{after})")


def test_a_list_that_was_decoded_is_written_down_without_its_texts(
    secret: Callable[[str], str],
) -> None:
    secret("[alpha-7, beta-8, 12]")
    cfg = compose(f"tags='${{oc.decode:{SHOWN}}}'", "seq=8")
    cleared = without_secrets(cfg, {"tags": list(cfg.tags), "seq": 8})
    assert cleared == {"tags": [SHOWN, SHOWN, f"${{oc.decode:{SHOWN}}}"], "seq": 8}


def test_the_folder_of_a_job_is_not_named_by_a_secret(secret: Callable[[str], str]) -> None:
    secret("tkQ7zz9")
    node = OmegaConf.create(
        {"dirname": "tags=${oc.env:XFTRAIN_TEST_SECRET}", "name": "${xf.slug:${.dirname}}"}
    )
    assert node.name == "_tags=.oc.env.XFTRAIN_TEST_SECRET."


@pytest.mark.parametrize("value", ["\U0001f600\U0001f601ab", "k\u20acx\u20acq7z", "\xe9\xe9zz9"])
@pytest.mark.parametrize("is_unicode", [True, False])
def test_a_line_that_yaml_breaks_after_an_escape_hides_a_secret(
    monkeypatch: pytest.MonkeyPatch, value: str, is_unicode: bool
) -> None:
    monkeypatch.setitem(READ.values, "XFTRAIN_TEST_SECRET", value)
    for length in range(50, 84):
        written = yaml.dump(["a" * length + " " + value], allow_unicode=is_unicode)
        assert value[-2:] not in hidden(written), written


@pytest.mark.parametrize(
    "joined",
    [
        ["tags=['${oc.env:XFTRAIN_TEST_SECRET}']", "data.path=/absent/pre${tags[0]}suf"],
        ["tags=['a${oc.env:XFTRAIN_TEST_SECRET}','x${.0}y']", "data.path=/absent/pr${tags[1]}suf"],
        ["data.cache_dir='${oc.env:XFTRAIN_TEST_SECRET}'", "data.path=/absent/pre${.cache_dir}s"],
        ["tags=['${oc.env:XFTRAIN_TEST_SECRET}']", "seed='pre${tags[0]}suf'"],
        ["data.path='/absent/pre${xf.unless:false,${oc.env:XFTRAIN_TEST_SECRET}}s'"],
    ],
)
def test_a_short_secret_that_comes_by_another_key_is_hidden(
    command: Callable[..., Ended],
    secret: Callable[[str], str],
    tmp_path: Path,
    joined: list[str],
) -> None:
    secret("q7z")
    with pytest.raises(ConfigError) as refused:
        validate(compose("data=text", *joined))
    assert "q7z" not in hidden(str(refused.value))
    assert hidden("xq7zx of another word") == "xq7zx of another word"
    ended = command("data=text", *joined)
    assert ended.code == 2 and "q7z" not in ended.out + ended.err
    texts = [path.read_text() for path in tmp_path.rglob("*") if path.is_file()]
    assert texts and not any("q7z" in text for text in texts)
