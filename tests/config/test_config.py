"""Composing a configuration, and checking all of it before anything heavy is imported."""

import importlib.machinery
import json
import re
from pathlib import Path

import hydra
import pytest
import yaml
from hydra.core.global_hydra import GlobalHydra
from omegaconf import OmegaConf

from xftrain.config.compose import compose, validate
from xftrain.config.overrides import HYDRA_GROUPS, groups_in
from xftrain.config.registry import GROUPS, conf_dir
from xftrain.config.root_schema import Root
from xftrain.errors import ConfigError


def _refusal(*overrides: str, **where) -> str:
    with pytest.raises(ConfigError) as refused:
        validate(compose(*overrides, **where))
    return str(refused.value)


# ---- conf/


def test_groups_are_the_folders_with_yaml_files(tmp_path):
    for name in ("model/attn/mine.yaml", "top.yaml", "a/b/c/deep.yml", "docs/readme.md"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).touch()

    assert groups_in(tmp_path) == {"model/attn", "a/b/c"}
    assert groups_in(conf_dir()) >= {*GROUPS, "model", "trainer", "hydra"}


def test_the_package_of_every_group_is_its_path():
    """Dotted overrides rest on it: a group under another package would be two different keys."""
    headers = {
        path.relative_to(conf_dir()).as_posix(): re.findall(r"@package\s+(\S+)", path.read_text())
        for path in conf_dir().rglob("*.yaml")
    }
    other = {name: found for name, found in headers.items() if found not in ([], ["_global_"])}

    assert headers
    assert other == {"layers/local_global.yaml": ["model.layers"]}  # no key is called `layers`


def test_the_root_file_has_the_keys_of_the_schema_with_the_same_defaults():
    written = yaml.safe_load((conf_dir() / "train.yaml").read_text())
    schema = OmegaConf.to_container(OmegaConf.structured(Root))

    del written["defaults"]
    assert written == {key: value for key, value in schema.items() if value != "???"}


@pytest.mark.parametrize("group", sorted(groups_in(conf_dir()) - HYDRA_GROUPS - {"hydra"}))
def test_every_option_composes_and_passes_the_checks(group, tmp_path, monkeypatch):
    # wandb and mlflow are extras that need not be installed
    spec = importlib.machinery.ModuleSpec("extra", None, origin="stand-in")
    monkeypatch.setattr("importlib.util.find_spec", lambda name: spec)
    (tmp_path / "corpus.txt").write_text("some text")
    options = [path.stem for path in (conf_dir() / group).glob("*.yaml")]
    assert options
    for option in options:
        overrides = [f"data.path={tmp_path}"] if option.startswith(("text", "chat")) else []
        if option == "mixture":
            overrides = [f"data.sources.a.path={tmp_path}", "data.sources.a.weight=1"]
        if (group, option) == ("model/bias", "full"):
            continue  # refused for training, as another test says
        validate(compose(f"{group}={option}", *overrides))


# ---- compose


def test_composing_sets_hydra_aside_and_puts_it_back():
    """A second notebook cell, or a run inside another Hydra application, composes as well."""
    compose()
    assert not GlobalHydra.instance().is_initialized()
    with hydra.initialize_config_dir(str(conf_dir()), version_base="1.3"):
        outer = GlobalHydra.instance().hydra
        assert compose("seq=32").seq == 32
        with pytest.raises(ConfigError):
            compose("seq=abc")
        assert GlobalHydra.instance().hydra is outer
        assert hydra.compose("train", ["seq=16"]).seq == 16


@pytest.fixture
def own_dir(tmp_path) -> Path:
    """A folder of the user's own options."""
    files = {
        "model/attn/mine.yaml": "_target_: xftrain.model.attn.naive.Naive\n",
        "plan/short.yaml": "# @package _global_\nmax_steps: 3\n",
        "plan/deep/tiny.yaml": "# @package _global_\nmax_steps: 2\n",
        "experiment/e1.yaml": "# @package _global_\ndefaults:\n"
        "  - override /model/attn: sdpa\nseq: 32\nmax_steps: 7\n",
        "experiment/plain.yaml": "# @package _global_\nmodel:\n  attn: naive\n",
        "experiment/merged.yaml": "# @package _global_\ndefaults:\n"
        "  - override /model/attn: [naive, sdpa]\n",
        "experiment/typo.yaml": "# @package _global_\nseqq: 3\n",
        "experiment/value.yaml": "# @package _global_\nseq: abc\n",
        "experiment/group.yaml": "# @package _global_\ndefaults:\n  - override /model/atn: sdpa\n",
        "experiment/syntax.yaml": "# @package _global_\nseq: 3: 4\n",
        "mine.yaml": "defaults:\n  - train\n  - _self_\nseq: 128\n",
    }
    folder = tmp_path / "own options"
    for name, text in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(text)
    return folder


def test_options_of_the_user_are_found(own_dir):
    cfg = compose("model.attn=mine", "+plan.deep=tiny", config_dir=own_dir)

    assert validate(cfg).model.attn.target == "xftrain.model.attn.naive.Naive"
    assert cfg.max_steps == 2
    assert compose(config_name="mine", config_dir=own_dir).seq == 128


def test_an_experiment_sets_root_keys_and_options_and_the_command_line_wins(own_dir):
    cfg = compose("experiment=e1", "seq=16", config_dir=own_dir)

    assert (cfg.seq, cfg.max_steps, cfg.model.attn.name) == (16, 7, "sdpa")


@pytest.mark.parametrize(
    ("experiment", "sentence"),
    [
        ("plain", "model.attn is the plain value 'naive' instead of an option; in a YAML file, "),
        ("merged", "model.attn takes one option, got [naive,sdpa]; "),
        ("typo", "In 'experiment/typo': seqq is not a key of the configuration; did you mean seq?"),
        ("value", "In 'experiment/value': seq must be an integer >= 1, got 'abc'."),
        ("group", "In 'experiment/group': model.atn is not a group; did you mean model.attn?"),
        ("syntax", "mapping values are not allowed here"),
        ("e2", "experiment=e2: no such option; choose one of alibi_gqa, e1, group, "),
    ],
)
def test_a_fault_in_a_file_is_one_sentence(own_dir, experiment, sentence):
    said = _refusal(f"experiment={experiment}", config_dir=own_dir)

    assert said.startswith(sentence)
    assert "\n" not in said


def test_a_configuration_folder_that_is_none_is_refused():
    assert _refusal(config_dir="nowhere") == "config_dir must be a folder, got 'nowhere'."


# ---- validate


def test_key_value_heads_must_divide_the_heads():
    said = _refusal("model.heads=gqa", "model.heads.num_kv_heads=3")

    assert said == (
        "model.heads.num_kv_heads must divide model.num_heads = 8, got 3; choose one of 1, 2, 4, 8."
    )


@pytest.mark.parametrize("path", ["nowhere", "''"])
def test_text_must_exist(path):
    said = _refusal("data=text", f"data.path={path}")

    assert said.startswith("data.path must be an existing file or folder, got ")


def test_a_class_and_a_name_in_one_node_are_refused():
    said = _refusal("+model.attn._target_=xftrain.model.attn.naive.Naive")

    assert said.startswith("model.attn has both name and _target_")


def test_a_list_of_one_option_is_that_option():
    """trainer/cpu builds on trainer/auto, which is no second choice."""
    cfg = compose("model.attn=[naive]", "trainer=cpu")

    assert (cfg.model.attn.name, cfg.trainer.accelerator) == ("naive", "cpu")


def test_the_checked_configuration_is_plain_complete_and_checks_again():
    cfg = validate(compose("model.bias=alibi", "optim.betas=[0.8,0.9]", "tags=[a]"))

    assert cfg.model.pos.node == {"name": "learned", "max_positions": 64}
    assert cfg.optim.options["betas"] == (0.8, 0.9)
    plain = cfg.to_dict()
    assert json.loads(json.dumps(plain))["model"]["bias"] == {
        "name": "alibi",
        "impl": "folded",
        "window": None,
    }
    assert (plain["tags"], plain["model"]["layers"]) == (["a"], {"pattern": None})
    assert validate(plain) == cfg


def test_a_missing_key_gets_the_default_of_the_class():
    cfg = compose("~optim.lr", "~trainer.devices")

    checked = validate(cfg)
    assert (checked.optim.options["lr"], checked.trainer.devices) == (3e-3, 1)


def test_entries_of_callbacks_can_be_chosen_and_left_out():
    chosen = validate(compose("callbacks=[checkpoint,metrics]", "logger=none"))
    left_out = validate(compose("callbacks.sample=null", "~callbacks.solved"))

    assert (set(chosen.callbacks), chosen.logger) == ({"checkpoint", "metrics"}, {})
    assert not {"sample", "solved"} & set(left_out.callbacks)
    assert {"checkpoint", "metrics"} <= set(left_out.callbacks)


def test_a_configuration_that_was_read_may_name_no_class(own_dir):
    """As from a checkpoint: naming a class would run code that its author chose."""
    options = validate(compose("model.attn=mine", config_dir=own_dir)).to_dict()
    with pytest.raises(ConfigError, match="Naive names a class in a configuration that was not"):
        validate(options)

    nested = validate(compose()).to_dict()
    nested["callbacks"]["x"] = {"name": "metrics", "deep": [{"_target_": "os.system"}]}
    with pytest.raises(ConfigError, match=r"os\.system names a class"):
        validate(nested)


def test_a_home_folder_is_written_out(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    (tmp_path / "corpus").mkdir()
    (tmp_path / "last.ckpt").touch()

    cfg = validate(compose("data=text", "data.path='~/corpus'", "ckpt='~/last.ckpt'"))
    assert cfg.data.options["path"] == str(tmp_path / "corpus")
    assert cfg.ckpt == str(tmp_path / "last.ckpt")


@pytest.mark.parametrize(
    ("overrides", "rows"),
    [([], 64), (["seq=128"], 32), (["seq=8192"], 1), (["seq=100"], 40), (["data.batch_size=7"], 7)],
)
def test_the_batch_holds_batch_tokens(overrides, rows):
    assert validate(compose(*overrides)).batch_size == rows


def test_the_settings_of_one_machine_are_taken_where_there_are_some(tmp_path):
    (tmp_path / "local").mkdir()
    (tmp_path / "local" / "default.yaml").write_text("# @package _global_\nseq: 32\nseed: 5\n")
    assert compose(config_dir=tmp_path).seq == 32
    assert compose("seq=16", config_dir=tmp_path).seq == 16  # what is typed counts more
    assert compose().seq == 64
