"""Beam search against exact scores and against `generate`; exact scores against one forward pass per item."""

import numpy as np
import pytest
import torch
from torch.overrides import TorchFunctionMode

from genrec.config import ArchitectureParams
from genrec.errors import DataError
from genrec.models.backbone import architecture, initialise
from genrec.models.beam import Prompts, beam_search, by_length, encode_histories, exact_scores
from genrec.sid.index import build_index
from genrec.sid.table import Vocabulary, build_table

WINDOW = 8


@pytest.fixture(scope="module")
def histories():
    rng = np.random.default_rng(5)
    return [rng.integers(0, 59, size=n) for n in (1, 8, 3, 5, 12)]


@pytest.fixture(scope="module")
def prompts(histories, table):
    return encode_histories(histories, table, WINDOW)


@torch.no_grad()
def slow_scores(model, history, table):
    """log p(SID | history) of every item: one full forward in float64 per item, no cache, no padding."""
    model = model.double()
    prompt = [Vocabulary.BOS, *table.tokens[np.asarray(history)[-WINDOW:]].ravel()]
    scores = []
    for target in table.tokens:
        logits = model(input_ids=torch.tensor([[*prompt, *target]]), use_cache=False).logits[0].log_softmax(-1)
        scores.append(sum(logits[len(prompt) - 1 + level, token].item() for level, token in enumerate(target)))
    return torch.tensor(scores, dtype=torch.float64)


def test_prompts_are_left_padded_and_keep_the_last_items(histories, prompts, table):
    assert prompts.tokens.shape == (5, 1 + WINDOW * table.vocabulary.levels)
    for row, mask, history in zip(prompts.tokens, prompts.mask, histories, strict=True):
        expected = [1, *table.tokens[history[-WINDOW:]].ravel()]
        assert row[mask].tolist() == expected
        assert row[~mask].tolist() == [0] * (len(row) - len(expected))
        assert mask.tolist() == sorted(mask.tolist())
    with pytest.raises(DataError, match="History 1 is empty"):
        encode_histories([[3], []], table, WINDOW)


def test_exact_scores_equal_a_forward_per_item(bundle, model, prompts, histories, table):
    fast = exact_scores(model, prompts, table)
    slow = torch.stack([slow_scores(bundle.model(), history, table) for history in histories])
    torch.testing.assert_close(fast.double(), slow, atol=2e-5, rtol=0)


@pytest.mark.parametrize("chunk", [1, 7, 512])
def test_exact_scores_do_not_depend_on_the_chunk(model, prompts, table, chunk):
    torch.testing.assert_close(
        exact_scores(model, prompts, table, chunk), exact_scores(model, prompts, table), atol=1e-5, rtol=0
    )


def test_a_beam_as_wide_as_the_catalogue_is_exact(model, prompts, table, bundle):
    items, scores = beam_search(model, prompts, bundle.index, beam=500)
    exact = exact_scores(model, prompts, table)
    assert items.shape == exact.shape
    torch.testing.assert_close(scores, exact.sort(descending=True).values, atol=1e-5, rtol=0)
    torch.testing.assert_close(exact.gather(1, items), scores, atol=1e-5, rtol=0)
    assert all(sorted(row) == list(range(59)) for row in items.tolist())
    assert (scores.diff(dim=1) <= 0).all()


def test_a_beam_as_wide_as_a_crowded_catalogue_is_exact():
    """Collisions on every prefix: the dedup level decides, and nodes have many children."""
    codes = np.random.default_rng(3).integers(3, size=(120, 2)).astype(np.int32)
    table = build_table([f"i{i:03d}" for i in range(120)], codes, 3)
    config = architecture(ArchitectureParams(hidden=32, layers=1, heads=2, feed_forward=32, window=4), table.vocabulary)
    model = initialise(config, seed=0).model()
    prompts = encode_histories([[3], [5, 9, 100]], table, 4)
    items, scores = beam_search(model, prompts, build_index(table), beam=120)
    exact = exact_scores(model, prompts, table)
    torch.testing.assert_close(scores, exact.sort(descending=True).values, atol=1e-5, rtol=0)
    torch.testing.assert_close(exact.gather(1, items), scores, atol=1e-5, rtol=0)


@pytest.mark.parametrize("beam", [2, 7])
def test_lists_and_scores_equal_those_of_generate(model, prompts, table, bundle, beam):
    levels = table.vocabulary.levels
    children = {}
    for tokens in table.tokens.tolist():
        for level in range(levels):
            children.setdefault(tuple(tokens[:level]), set()).add(tokens[level])
    length = prompts.tokens.shape[1]
    out = model.generate(
        input_ids=prompts.tokens, attention_mask=prompts.mask.long(), max_new_tokens=levels, num_beams=beam,
        num_return_sequences=beam, do_sample=False, length_penalty=0.0, renormalize_logits=False, pad_token_id=0,
        prefix_allowed_tokens_fn=lambda _, ids: sorted(children[tuple(ids[length:].tolist())]),
        return_dict_in_generate=True, output_scores=True,
    )  # fmt: skip
    item_of = {tuple(tokens): i for i, tokens in enumerate(table.tokens.tolist())}
    theirs = [[item_of[tuple(s)] for s in part] for part in out.sequences[:, length:].view(-1, beam, levels).tolist()]
    items, scores = beam_search(model, prompts, bundle.index, beam)
    assert items.tolist() == theirs
    torch.testing.assert_close(scores, out.sequences_scores.view(-1, beam), atol=1e-4, rtol=0)


def test_denied_items_give_way_to_the_next_best(model, prompts, table, bundle):
    exact = exact_scores(model, prompts, table)
    seen = exact.topk(20).indices  # each user's own favourites
    deny = torch.arange(59) % 7 == 0
    gone = torch.zeros_like(exact, dtype=torch.bool).scatter_(1, seen, True) | deny
    expected, left = exact.masked_fill(gone, -torch.inf).sort(descending=True).values, (~gone).sum(1)
    items, scores = beam_search(model, prompts, bundle.index, beam=59, deny=deny, seen=seen)
    for row, count in enumerate(left.tolist()):
        assert items[row, count:].eq(-1).all()
        assert not gone[row, items[row, :count]].any()
    torch.testing.assert_close(scores, expected, atol=1e-5, rtol=0)
    narrow = beam_search(model, prompts, bundle.index, beam=3, deny=deny, seen=seen)[0]
    assert not gone.gather(1, narrow).any()


def test_one_mask_for_all_equals_the_same_mask_for_each(model, prompts, bundle):
    deny = torch.arange(59) % 3 == 0
    one = beam_search(model, prompts, bundle.index, 10, deny)
    each = beam_search(model, prompts, bundle.index, 10, seen=torch.where(deny, torch.arange(59), -1).repeat(5, 1))
    torch.testing.assert_close(one, each, atol=0, rtol=0)
    assert not deny[one[0]].any()


def test_when_everything_is_denied_nothing_is_found(model, prompts, bundle):
    seen = torch.full((5, 59), -1)
    seen[1] = torch.arange(59)
    items, scores = beam_search(model, prompts, bundle.index, 10, seen=seen)
    assert items[1].eq(-1).all()
    assert scores[1].eq(-torch.inf).all()
    assert items[[0, 2, 3, 4]].ge(0).all()


def test_a_users_list_does_not_depend_on_the_batch(model, prompts, histories, table, bundle):
    together = beam_search(model, prompts, bundle.index, 10)
    for row, history in enumerate(histories):
        items, scores = beam_search(model, encode_histories([history], table, WINDOW), bundle.index, 10)
        assert items[0].tolist() == together[0][row].tolist()
        torch.testing.assert_close(scores[0], together[1][row], atol=1e-5, rtol=0)


def test_no_step_asks_the_device_for_a_number(model, prompts, bundle):
    """What a GPU would be waited for: only the prompt's forward looks at its padding."""
    tensor = torch.Tensor
    waits = {tensor.item, tensor.tolist, tensor.numpy, tensor.cpu, tensor.nonzero, torch.nonzero}
    waits |= {tensor.__bool__, tensor.__int__, tensor.__float__, tensor.__index__}

    class Recorder(TorchFunctionMode):
        count = 0

        def __torch_function__(self, func, types, args=(), kwargs=None):
            by_mask = func is tensor.__getitem__ and isinstance(args[1], tensor) and args[1].dtype == torch.bool
            self.count += by_mask or func in waits
            return func(*args, **kwargs or {})

    def waited(work):
        with Recorder() as recorder:
            work()
        return recorder.count

    assert waited(lambda: prompts.tokens.sum().item() and bool(prompts.mask.any()) and prompts.mask[prompts.mask]) == 3
    with torch.inference_mode():
        prompt = waited(lambda: model(input_ids=prompts.tokens, attention_mask=prompts.mask.long(), logits_to_keep=1))
    masks = {"deny": torch.arange(59) % 7 == 0, "seen": torch.arange(10).view(5, 2)}
    assert waited(lambda: beam_search(model, prompts, bundle.index, 10, **masks)) == prompt <= 2


def test_batches_by_length_hold_every_history_once_and_pad_little():
    histories = [range(n) for n in (9, 1, 5, 70, 2, 50, 4)]
    batches = by_length(histories, 50, 2)
    assert sorted(i for batch in batches for i in batch) == list(range(7))
    assert [[len(histories[i]) for i in batch] for batch in batches] == [[1, 2], [4, 5], [9, 70], [50]]


def test_more_padding_changes_nothing(model, prompts, bundle):
    wider = Prompts(
        torch.nn.functional.pad(prompts.tokens, (9, 0)), torch.nn.functional.pad(prompts.mask, (9, 0), value=False)
    )
    plain, padded = (beam_search(model, p, bundle.index, 10) for p in (prompts, wider))
    assert plain[0].tolist() == padded[0].tolist()
    torch.testing.assert_close(plain[1], padded[1], atol=1e-5, rtol=0)
