"""A step is the same however it is computed: in several passes, and by the processes of torch.distributed.run."""

import os
import subprocess
import sys
from dataclasses import replace

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from genrec.sid.table import save_table
from genrec.training.base import train_adapter
from genrec.training.rows import Collated, Row, batch_loss, collate, split_batch

WORKER = """
import sys
from pathlib import Path

import numpy as np
from safetensors.torch import save_file

from genrec.config import Params
from genrec.models.backbone import load_backbone
from genrec.sid.table import load_table
from genrec.training.base import train_adapter
from genrec.training.loop import is_main_process
from genrec.training.rows import whole

root = Path(sys.argv[1])
params = Params.model_validate_json((root / "params.json").read_text())
rows = whole(enumerate(np.split(np.load(root / "items.npy"), np.load(root / "cuts.npy"))))
adapter, curve = train_adapter(
    load_backbone(root / "backbone"), rows, load_table(root / "table.parquet"), params,
    checkpoint=root / "checkpoint.safetensors",
)
if is_main_process():
    save_file(adapter.state, root / "adapter.safetensors", metadata={"losses": repr(curve.losses)})
"""


@pytest.fixture(scope="module")
def brief(params, small):
    return small(params, "train", epochs=2, dropout=0.0, checkpoint_epochs=1, batch_tokens=600)


@pytest.fixture(scope="module")
def alone(backbone, training, table, brief):
    return train_adapter(backbone, training[:24], table, brief)


def assert_same(state, expected):
    assert state.keys() == expected.keys()
    for name, tensor in expected.items():
        torch.testing.assert_close(state[name], tensor, atol=1e-5, rtol=0)


@pytest.mark.parametrize("count", [1, 2, 5, 9])
def test_the_parts_of_a_batch_add_up_to_it(bundle, table, count):
    rows = [Row(np.arange(n), loss_from=n // 3) for n in (2, 7, 4, 8, 1)]
    rows[1] = replace(rows[1], skip=np.arange(7) < 5)
    batch, model = collate(rows, table), bundle.adapted()
    parts = split_batch(batch, count)
    assert len(parts) == count
    assert sum(share for _, share in parts) == pytest.approx(1)
    whole, summed = batch_loss(model, batch), sum(batch_loss(model, part) * share for part, share in parts)
    assert summed.item() == pytest.approx(whole.item(), abs=1e-5)


def test_collated_batches_are_those_of_collate(table):
    parts = [[Row(np.arange(3))], [Row(np.arange(5)), Row(np.arange(2))]]
    batches = Collated(parts, table)
    assert len(batches) == 2
    assert torch.equal(batches[1].tokens, collate(parts[1], table).tokens)
    assert len(list(batches)) == 2


@pytest.mark.parametrize("accumulate", [3, 20])
def test_a_step_in_several_passes_is_the_same_step(backbone, training, table, brief, small, alone, accumulate):
    adapter, curve = train_adapter(backbone, training[:24], table, small(brief, "train", accumulate=accumulate))
    assert_same(adapter.state, alone[0].state)
    assert curve.losses == pytest.approx(alone[1].losses, abs=1e-5)


def test_two_processes_train_what_one_does(backbone, training, table, brief, alone, tmp_path):
    from genrec.models.backbone import save_backbone

    save_backbone(backbone, tmp_path / "backbone")
    save_table(table, tmp_path / "table.parquet")
    (tmp_path / "params.json").write_text(brief.model_dump_json())
    items = [row.items for row in training[:24]]
    np.save(tmp_path / "items.npy", np.concatenate(items))
    np.save(tmp_path / "cuts.npy", np.cumsum([len(i) for i in items])[:-1])
    (tmp_path / "worker.py").write_text(WORKER)
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2"]
    environment = os.environ | {"GLOO_SOCKET_IFNAME": "lo", "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [*command, str(tmp_path / "worker.py"), str(tmp_path)], env=environment, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr[-2000:]
    assert_same(load_file(tmp_path / "adapter.safetensors"), alone[0].state)
    assert not (tmp_path / "checkpoint.safetensors").exists()
