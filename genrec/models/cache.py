"""The key-value cache of decoding: as long as it will be from the start, so that a step copies only its own tokens."""

import torch
from transformers import DynamicCache
from transformers.cache_utils import DynamicLayer


class RoomyLayer(DynamicLayer):
    """A layer with room for `length` tokens."""

    def __init__(self, length: int):
        super().__init__()
        self.length = length

    def update(self, key_states: torch.Tensor, value_states: torch.Tensor, *_, **__) -> tuple[torch.Tensor, ...]:
        """Add keys and values [batch, heads, tokens, width]; returns all of them."""
        start = self.get_seq_length()
        end = start + key_states.shape[-2]
        if start == 0:
            self.room = [x.new_empty(*x.shape[:-2], self.length, x.shape[-1]) for x in (key_states, value_states)]
            self.is_initialized = True
        for room, states in zip(self.room, (key_states, value_states), strict=True):
            room[..., start:end, :] = states
        self.keys, self.values = (room[..., :end, :] for room in self.room)
        return self.keys, self.values


def roomy_cache(model: torch.nn.Module, length: int) -> DynamicCache | None:
    """An empty cache for `length` tokens; None for a model that makes its own. Sliding windows keep their layers."""
    if model.config.is_encoder_decoder:
        return None
    cache = DynamicCache(config=model.config)
    cache.layers = [RoomyLayer(length) if type(layer) is DynamicLayer else layer for layer in cache.layers]
    return cache
