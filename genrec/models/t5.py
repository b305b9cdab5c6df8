"""T5 as in TIGER (arXiv 2305.05065) behind the causal model's interface: its encoder reads histories, its decoder SIDs.

A packed row `[BOS] sid(i1) sid(i2) ...` is one pass per prefix: the encoder sees `[BOS]` and the items before i_t in
both directions, the decoder `[BOS]` and the codes of i_t so far. The logits come back where a causal LM would have
them, so that training, likelihoods and unlearning need not know. Each pass is recomputed in the backward one: all
prefixes' activations at once would be `window` times those of a causal model.

In decoding, beams are positions of the decoder under the caller's 4D mask. T5 counts positions by place in the
sequence, which would tell beams apart; so its relative bias is computed here, from the caller's position ids.
"""

import torch
from torch.utils.checkpoint import checkpoint
from transformers import DynamicCache, EncoderDecoderCache, T5ForConditionalGeneration
from transformers.modeling_outputs import Seq2SeqLMOutput


class HistoryCache(EncoderDecoderCache):
    """The encoded histories [batch, length, d] with their additive mask, and the decoder's keys and values.

    Attributes:
        shift: what a caller's position id exceeds the decoder's position by, int64 [batch, 1]
        positions: decoder positions of the cached keys, int64 [batch, keys]
    """

    def __init__(self, memory: torch.Tensor, visible: torch.Tensor):
        super().__init__(DynamicCache(), DynamicCache())
        self.memory = memory
        self.memory_mask = torch.zeros_like(visible, dtype=memory.dtype)[:, None, None]
        self.memory_mask.masked_fill_(~visible.bool()[:, None, None], torch.finfo(memory.dtype).min)
        self.shift = visible.long().sum(1, keepdim=True) - 1
        self.positions = torch.zeros(len(memory), 0, dtype=torch.int64, device=memory.device)

    def crop(self, tokens_to_remove: int) -> None:
        super().crop(tokens_to_remove)
        self.positions = self.positions[:, : self.get_seq_length()]


class PackedT5(T5ForConditionalGeneration):
    """T5 with the forward of a causal LM over packed rows; `config.levels` is the number of tokens per item."""

    def forward(
        self, input_ids=None, inputs_embeds=None, attention_mask=None, position_ids=None, past_key_values=None,
        use_cache=False, **_,
    ) -> Seq2SeqLMOutput:  # fmt: skip
        """Logits [batch, length, vocab] of the next token at every position; with `use_cache` of the last one alone.

        past_key_values: a HistoryCache; then `input_ids` continue its histories under an additive `attention_mask`
        [batch, 1, queries, history + keys] at `position_ids` [batch, queries].
        """
        x = self.shared(input_ids) if inputs_embeds is None else inputs_embeds
        if past_key_values is not None:
            mask = attention_mask[..., past_key_values.memory.shape[1] - 1 :]  # its last history column is [BOS]'s
            logits = self._decode(x, position_ids - past_key_values.shift, mask, past_key_values)
            return Seq2SeqLMOutput(logits=logits, past_key_values=past_key_values)
        if use_cache:
            memory = self.encoder(inputs_embeds=x, attention_mask=attention_mask).last_hidden_state
            cache = HistoryCache(memory, attention_mask)
            logits = self._decode(self._begin(x), torch.zeros_like(cache.shift), None, cache)
            return Seq2SeqLMOutput(logits=logits, past_key_values=cache)
        levels = self.config.levels
        parts = [(x[:, : at + 1], x[:, at + 1 : at + levels]) for at in range(0, x.shape[1], levels)]
        if torch.is_grad_enabled():
            logits = [checkpoint(self._next_item, *part, use_reentrant=False) for part in parts]
        else:
            logits = [self._next_item(*part) for part in parts]
        return Seq2SeqLMOutput(logits=torch.cat(logits, 1))

    def _begin(self, x: torch.Tensor) -> torch.Tensor:
        return self.shared.weight[self.config.bos_token_id].expand(len(x), 1, -1)

    def _next_item(self, history: torch.Tensor, codes: torch.Tensor) -> torch.Tensor:
        """Logits [batch, 1 + codes, vocab] from embedded history and codes; no prefix before a target is padded."""
        memory = self.encoder(inputs_embeds=history).last_hidden_state
        cache = HistoryCache(memory, torch.ones(history.shape[:2], dtype=torch.bool, device=history.device))
        x = torch.cat([self._begin(history), codes], 1)
        length = x.shape[1]
        causal = torch.full((length, length), torch.finfo(x.dtype).min, dtype=x.dtype, device=x.device).triu(1)
        positions = torch.arange(length, device=x.device).expand(len(x), -1)
        return self._decode(x, positions, causal[None, None], cache)

    def _decode(self, x, positions, mask, cache: HistoryCache) -> torch.Tensor:
        cache.positions = torch.cat([cache.positions, positions], 1)
        attention = self.decoder.block[0].layer[0].SelfAttention
        bucket = attention._relative_position_bucket(
            cache.positions[:, None] - positions[..., None], bidirectional=False,
            num_buckets=self.config.relative_attention_num_buckets,
            max_distance=self.config.relative_attention_max_distance,
        )  # fmt: skip
        bias = attention.relative_attention_bias(bucket).permute(0, 3, 1, 2)
        x = self.decoder.dropout(x)
        for block in self.decoder.block:
            x = block(x, mask, bias, cache.memory, cache.memory_mask, past_key_values=cache)[0]
        x = self.decoder.dropout(self.decoder.final_layer_norm(x))
        if self.config.scale_decoder_outputs:
            x = x * self.model_dim**-0.5
        return self.lm_head(x)
