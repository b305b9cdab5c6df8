"""params.yaml: refusals, defaults and the files that have to agree with them; the stages and their commands."""

from pathlib import Path

import pytest
import yaml
from pydantic import BaseModel, ValidationError

import genrec
from genrec import pipeline
from genrec.cli import stage_app
from genrec.config import Params, Settings, UnlearningParams, known_params, load_params
from genrec.errors import ConfigError
from genrec.unlearning import METHODS, method
from genrec.workspace import create, params_yaml

ROOT = Path(genrec.__file__).parents[1]
RESOURCES = Path(genrec.__file__).parent / "resources"


@pytest.fixture
def load(tmp_path):
    def read(text):
        (tmp_path / "params.yaml").write_text(text)
        return load_params(tmp_path / "params.yaml")

    return read


def leaves(section, prefix=""):
    """Dotted names of all parameters, with value and description."""
    for name, field in type(section).model_fields.items():
        value = getattr(section, name)
        if isinstance(value, BaseModel):
            yield from leaves(value, f"{prefix}{name}.")
        else:
            yield prefix + name, value, field.description


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("trian: {epochs: 3}", r"Unknown key 'trian'\. Known keys near it: train\. Remove or rename trian\."),
        ("train: {epoch: 3}", r"Unknown key 'epoch'\. Known keys near it: epochs.* Remove or rename train\.epoch\."),
        ("unlearning: {ucan: {quantil: 0.5}}", r"near it: quantile\. Remove or rename unlearning\.ucan\.quantil\."),
        ("train: {epochs: 0}", r"train\.epochs = 0: .*greater than or equal to 1"),
        ("train: {epochs: many}", r"train\.epochs = 'many'"),
        ("split: {holdout_users: 0.5}", r"split\.holdout_users = 0\.5: .*less than 0\.5"),
        ("sid: {codes: some}", r"sid\.codes"),
        ("gates: {membership: [0.4]}", r"gates\.membership"),
        ("seed: -1", r"seed = -1"),
        ("- 1", r"must hold a mapping, not list"),
        ("a: [", r"is not valid YAML"),
    ],
)
def test_refusals_name_the_key_the_value_and_the_remedy(load, text, message):
    with pytest.raises(ConfigError, match=message):
        load(text)


def test_all_that_is_wrong_is_told_at_once(load):
    with pytest.raises(ConfigError, match=r"seed = -1.*; Unknown key 'trian'|Unknown key 'trian'.*; seed = -1"):
        load("seed: -1\ntrian: {}")


def test_a_missing_file_says_how_to_make_one(tmp_path):
    with pytest.raises(ConfigError, match="genrec init"):
        load_params(tmp_path / "params.yaml")


def test_what_is_left_out_has_its_default(load):
    assert load("") == Params()
    loaded = load("train: {rank: 4}\nseed: 9")
    assert (loaded.train.rank, loaded.seed) == (4, 9)
    assert loaded.train.epochs == Params().train.epochs


def test_parameters_do_not_change():
    with pytest.raises(ValidationError):
        Params().train.rank = 3


def test_params_yaml_round_trips(load, params):
    assert load(params_yaml()) == Params()
    assert params != Params()
    assert load(params_yaml(params)) == params
    extreme = Params.model_validate(
        {"train": {"learning_rate": 1e-5}, "sid": {"codes": 64}, "unlearning": {"user_ladder": []}, "seed": 10**12}
    )
    assert load(params_yaml(extreme)) == extreme


def test_every_parameter_and_every_setting_is_explained():
    told = {name: description for name, _, description in (*leaves(Params()), *leaves(Settings()))}
    assert len(told) > 150
    assert [name for name, description in told.items() if not (description or "").strip()] == []


def test_params_yaml_explains_every_key():
    lines = params_yaml().splitlines()
    for name, _, description in leaves(Params()):
        matching = [line for line in lines if line.strip().startswith(f"{name.rsplit('.', 1)[-1]}:")]
        assert any(line.endswith(f"  # {description}") for line in matching), name


def test_the_repository_is_a_workspace_with_the_defaults():
    assert load_params(ROOT / "params.yaml") == Params()
    assert (ROOT / "params.yaml").read_text() == params_yaml()
    assert (ROOT / "dvc.yaml").read_text() == (RESOURCES / "dvc.yaml").read_text()


def test_a_new_workspace_has_both_files_and_is_not_made_twice(tmp_path):
    create(tmp_path / "shop")
    assert (tmp_path / "shop" / "params.yaml").read_text() == params_yaml()
    assert (tmp_path / "shop" / "dvc.yaml").read_text() == (RESOURCES / "dvc.yaml").read_text()
    assert (tmp_path / "shop" / ".dvc").is_dir()
    with pytest.raises(ConfigError, match="is a workspace already"):
        create(tmp_path / "shop")


def test_every_stage_has_a_command_of_its_name_and_the_reverse():
    stages = yaml.safe_load((RESOURCES / "dvc.yaml").read_text())["stages"]
    commands = {command.name for command in stage_app.registered_commands}
    assert list(stages) == list(pipeline.STAGES)
    assert commands == set(stages)
    assert {name: stage["cmd"] for name, stage in stages.items()} == {name: f"genrec stage {name}" for name in stages}


def test_stages_depend_on_parameters_that_exist():
    known = {name for name, *_ in leaves(Params())}
    stages = yaml.safe_load((RESOURCES / "dvc.yaml").read_text())["stages"]
    for stage, entry in stages.items():
        for key in entry["params"]:
            assert any(name == key or name.startswith(f"{key}.") for name in known), f"{stage}: {key}"


def test_stages_read_what_an_earlier_stage_wrote():
    stages = yaml.safe_load((RESOURCES / "dvc.yaml").read_text())["stages"]
    written = {"data"}
    for stage, entry in stages.items():
        for needed in entry["deps"]:
            assert any(needed == path or needed.startswith(f"{path}/") for path in written), f"{stage}: {needed}"
        written |= set(entry.get("outs", []))


def test_the_ladders_climb_known_methods_and_end_exactly():
    for ladder in (UnlearningParams().user_ladder, UnlearningParams().concept_ladder):
        assert [method(name).name for name in ladder] == list(ladder)
        assert [METHODS[name].exact for name in ladder] == [False] * (len(ladder) - 1) + [True]
    with pytest.raises(ConfigError, match=r"Unknown method 'tracr'\. Known methods near it: tracer.*concept_ladder"):
        method("tracr")


def test_settings_come_from_the_environment(monkeypatch, tmp_path):
    monkeypatch.setenv("GENREC_HOME", str(tmp_path))
    monkeypatch.setenv("GENREC_MLFLOW_URI", "http://example.org")
    workspace = Settings().workspace
    assert workspace.root == tmp_path.resolve()
    assert workspace.mlflow_uri == "http://example.org"
    assert workspace.ledger_url == f"sqlite:///{tmp_path.resolve() / 'var' / 'ledger.db'}"


@pytest.mark.parametrize(
    ("uri", "given", "artefacts"),
    [
        (None, None, "file://{home}/mlruns/artifacts"),
        ("postgresql://host/mlflow", None, "file://{home}/mlruns/artifacts"),
        ("http://127.0.0.1:5000", None, None),
        ("https://mlflow.example.org", None, None),
        ("http://127.0.0.1:5000", "s3://genrec/mlflow", "s3://genrec/mlflow"),
        (None, "s3://genrec/mlflow", "s3://genrec/mlflow"),
    ],
)
def test_an_mlflow_server_decides_where_artefacts_are_kept_unless_it_is_told(tmp_path, uri, given, artefacts):
    workspace = Settings(home=tmp_path, mlflow_uri=uri, mlflow_artefacts=given).workspace
    assert workspace.mlflow_artefacts == (artefacts and artefacts.format(home=tmp_path.resolve()))


def test_the_pseudonym_key_is_made_once_and_kept_from_others(monkeypatch, tmp_path):
    monkeypatch.delenv("GENREC_PSEUDONYM_KEY", raising=False)
    workspace = Settings(home=tmp_path).workspace
    key = workspace.pseudonym_key()
    assert len(key) == 64
    assert workspace.pseudonym_key() == key
    assert (workspace.var / "pseudonym.key").stat().st_mode & 0o777 == 0o600
    assert Settings(home=tmp_path, pseudonym_key="mine").workspace.pseudonym_key() == b"mine"


def test_keys_that_a_newer_version_lost_do_not_make_an_old_bundle_unreadable():
    old = {"seed": 4, "gone": 1, "unlearning": {"tracer": {"steps": 5, "batch_size": 24}, "user_ladder": ["retrain"]}}
    kept = known_params(old)
    assert kept == {"seed": 4, "unlearning": {"tracer": {"steps": 5}, "user_ladder": ["retrain"]}}
    assert Params.model_validate(kept).unlearning.tracer.steps == 5
