"""A shop small enough to train on in a second: 80 users, 59 items, SIDs of 3 x 8 codes, a backbone of width 32."""

import shutil
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from genrec.config import (
    ArchitectureParams,
    BackboneParams,
    DecodingParams,
    GateParams,
    Params,
    SidParams,
    SimulatedParams,
    TrainParams,
)
from genrec.data.erase import erase
from genrec.data.prepare import prepare
from genrec.data.sequences import load_dataset, read_forget_set, restore
from genrec.data.simulator import simulate
from genrec.data.subjects import Subject
from genrec.data.tables import write_tables
from genrec.models.bundle import Bundle, Lineage
from genrec.requests.database import migrate, scrub
from genrec.requests.schema import Base
from genrec.sid.quantise import assign, fit
from genrec.sid.table import build_table
from genrec.training.base import train_adapter, train_backbone
from genrec.training.rows import whole
from genrec.unlearning import Problem
from genrec.unlearning_params import TracerParams, UcanParams, UnlearningParams

torch.set_num_threads(1)

KEY = b"key"
CONCEPT = "Cycling"


@pytest.fixture(scope="module", params=["sqlite", "postgresql"])
def empty_database_url(request, tmp_path_factory):
    """Makes URLs of empty databases of one engine after the other."""
    if request.param == "sqlite":
        return lambda: f"sqlite:///{tmp_path_factory.mktemp('empty') / 'var' / 'ledger.db'}"
    return request.getfixturevalue("postgres").database


@pytest.fixture(scope="module")
def new_ledger_url(empty_database_url, tmp_path_factory):
    """Makes URLs of ledgers without requests; a database per test would be most of the time."""
    url = empty_database_url()
    engine = migrate(url)
    scrub(engine)

    def emptied():
        with engine.begin() as connection:
            connection.exec_driver_sql(f"TRUNCATE {', '.join(Base.metadata.tables)}")
        return url

    def copied():
        folder = tmp_path_factory.mktemp("fresh") / "var"
        folder.mkdir()
        return f"sqlite:///{shutil.copy(engine.url.database, folder)}"

    yield copied if engine.dialect.name == "sqlite" else emptied
    engine.dispose()


@pytest.fixture(scope="session")
def params():
    return Params(
        sid=SidParams(levels=3, codes=8),
        architecture=ArchitectureParams(hidden=32, layers=2, heads=2, feed_forward=64, window=8),
        backbone=BackboneParams(visits=150, batch_size=16, walk_length=8, neighbours=5),
        train=TrainParams(rank=8, alpha=16, dropout=0.1, epochs=20, batch_tokens=1200, learning_rate=5e-3),
        decoding=DecodingParams(beam=20, batch_size=32),
        unlearning=UnlearningParams(
            ucan=UcanParams(retain_users=30),
            tracer=TracerParams(steps=25, batch_tokens=400, repair_steps=5, phi_learning_rate=0.2, learning_rate=1e-3),
        ),
        gates=GateParams(bootstrap=200),
    )


@pytest.fixture(scope="session")
def shop(tmp_path_factory, params):
    """Folders of the raw and the prepared tables, and the dataset in them."""
    root = tmp_path_factory.mktemp("shop")
    (root / "data").mkdir()
    write_tables(simulate(SimulatedParams(users=80, items=60, mean_length=14), 0), root / "data")
    prepare(root / "data", root / "prepared", params, KEY)
    return SimpleNamespace(root=root, dataset=load_dataset(root / "prepared"))


@pytest.fixture(scope="session")
def dataset(shop):
    return shop.dataset


@pytest.fixture(scope="session")
def embeddings(dataset):
    """What an encoder would give: a direction for each concept of an item, and noise. float32 [items, 16]."""
    rng = np.random.default_rng(1)
    member = np.zeros((len(dataset.item_ids), len(dataset.concepts)))
    for column, rows in enumerate(dataset.concepts.values()):
        member[rows, column] = 1
    mixed = member @ rng.normal(size=(member.shape[1], 16)) + 0.4 * rng.normal(size=(len(member), 16))
    return mixed.astype(np.float32)


@pytest.fixture(scope="session")
def codebooks(embeddings):
    return fit(embeddings, levels=3, codes=8, iterations=10, seed=0)


@pytest.fixture(scope="session")
def table(dataset, embeddings, codebooks):
    return build_table(dataset.item_ids, assign(embeddings, codebooks), 8)


@pytest.fixture(scope="session")
def backbone(table, embeddings, params):
    return train_backbone(table, embeddings, params)[0]


@pytest.fixture(scope="session")
def training(dataset):
    """The rows an adapter trains on: whole training histories."""
    histories = [(u, dataset.training_rows(u)) for u in range(len(dataset.user_ids))]
    return whole((u, items) for u, items in histories if len(items))


@pytest.fixture(scope="session")
def bundle(backbone, table, codebooks, training, params, dataset):
    adapter = train_adapter(backbone, training, table, params)[0]
    return Bundle(backbone, adapter, table, codebooks, params, Lineage("d0", "c0"), titles=dataset.titles)


@pytest.fixture(scope="session")
def model(bundle):
    return bundle.adapted()


@pytest.fixture(scope="session")
def night(shop, params, tmp_path_factory):
    """subjects -> (retained, restored, forget set), through the real erasure."""

    def run(*subjects):
        root = tmp_path_factory.mktemp("night")
        for name in ("data", "prepared"):
            shutil.copytree(shop.root / name, root / name)
        erase(root / "data", root / "prepared", subjects, root / "sealed.parquet", KEY)
        prepare(root / "data", root / "prepared", params, KEY)
        retained = load_dataset(root / "prepared")
        forget = read_forget_set(root / "sealed.parquet", retained)
        return SimpleNamespace(retained=retained, restored=restore(retained, forget), forget=forget)

    return run


@pytest.fixture(scope="session")
def concept_night(night):
    return night(Subject("concept", concept=CONCEPT))


@pytest.fixture(scope="session")
def user_night(night, dataset):
    trained = [u for u in range(len(dataset.user_ids)) if len(dataset.training_rows(u))]
    return night(*(Subject("user", dataset.user_ids[u]) for u in trained[5:65:10]))


@pytest.fixture(scope="session")
def concept_problem(concept_night, bundle, params, embeddings):
    items = concept_night.restored.concepts[CONCEPT]
    nobody = np.empty(0, np.int64)
    return Problem(
        bundle, params, concept_night.retained, concept_night.restored, nobody, items, embeddings, "b-concept"
    )


@pytest.fixture(scope="session")
def user_problem(user_night, bundle, params, embeddings):
    users = np.array([user_night.restored.user_ids.index(name) for name in user_night.forget.user_ids])
    nothing = np.empty(0, np.int64)
    return Problem(
        bundle, params, user_night.retained, user_night.restored, users, nothing, embeddings, "b-users", seed=3
    )


@pytest.fixture(scope="session")
def small():
    """dotted changes -> a copy of `params` with them: `small(params, "train", epochs=2)`."""

    def change(params, section, **values):
        first, _, rest = section.partition(".")
        part = getattr(params, first)
        changed = change(part, rest, **values) if rest else part.model_copy(update=values)
        return params.model_copy(update={first: changed})

    return change


@pytest.fixture(scope="session")
def damaged(bundle):
    """A copy of `bundle` whose B matrices are multiplied by a factor: a different model in the same frame."""

    def scale(factor):
        state = {n: t * factor if "lora_B" in n else t for n, t in bundle.adapter.state.items()}
        return replace(bundle, adapter=replace(bundle.adapter, state=state))

    return scale
