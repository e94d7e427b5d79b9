"""A small causal transformer whose parameters are mostly an embedding that each step touches in a few rows."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional


class Transformer(nn.Module):
    """A decoder-only language model: two blocks of width 64, and a table of 32,768 rows for runs of three tokens.

    int64 ``[batch, length]``, length at most 64 -> logits ``[batch, length, num_classes]`` of each position's next
    token, from the tokens up to it alone. 2,234,368 parameters at 256 classes, 2,097,152 of them in the table.

    The table holds a vector per hash of the last three tokens, added to the token's own (hashed n-gram embeddings, as
    in Pagnoni et al., "Byte Latent Transformer", 2024, section 3.2.1): reading it is cheap, and its gradient is zero in
    all rows but those that a batch hits, as in a large vocabulary. Blocks normalise first; no dropout, so that a step
    depends on its batch alone.
    """

    LENGTH, WIDTH, HEADS, DEPTH, ROWS = 64, 64, 4, 2, 2**15

    def __init__(self, num_classes: int = 256) -> None:
        super().__init__()
        self.num_classes = num_classes
        self.tokens = nn.Embedding(num_classes, self.WIDTH)
        self.runs = nn.Embedding(self.ROWS, self.WIDTH)
        self.positions = nn.Parameter(torch.zeros(self.LENGTH, self.WIDTH))
        self.blocks = nn.Sequential(*(Block(self.WIDTH, self.HEADS) for _ in range(self.DEPTH)))
        self.norm = nn.LayerNorm(self.WIDTH)
        self.head = nn.Linear(self.WIDTH, num_classes)
        for name, parameter in self.named_parameters():
            if parameter.ndim > 1:
                # What adds to the residual stream starts smaller the deeper the model is (GPT-2, section 2.3).
                shrink = (2 * self.DEPTH) ** -0.5 if name.endswith("out.weight") else 1.0
                nn.init.normal_(parameter, std=0.02 * shrink)
            elif name.endswith("bias"):
                nn.init.zeros_(parameter)

    def forward(self, tokens: Tensor) -> Tensor:
        hidden = self.tokens(tokens) + self.runs(self.rows(tokens)) + self.positions[: tokens.shape[1]]
        logits: Tensor = self.head(self.norm(self.blocks(hidden)))
        return logits

    def rows(self, tokens: Tensor) -> Tensor:
        """Each position's row of the table, int64 of the tokens' shape; before the first token there are zeros."""
        before, long_before = (functional.pad(tokens, (back, 0))[:, : tokens.shape[1]] for back in (1, 2))
        run = (long_before * self.num_classes + before) * self.num_classes + tokens
        # Knuth's multiplicative hash, of whose 32 bits the upper ones are the mixed ones.
        rows: Tensor = run % 2**31 * 2_654_435_761 % 2**32 // (2**32 // self.ROWS)
        return rows


class Block(nn.Module):
    """Causal self-attention and a two-layer network, each added to what comes in: ``[batch, length, width]``."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.attention_norm, self.network_norm = nn.LayerNorm(width), nn.LayerNorm(width)
        self.attention_in, self.attention_out = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.network_in, self.network_out = nn.Linear(width, 4 * width), nn.Linear(4 * width, width)

    def forward(self, hidden: Tensor) -> Tensor:
        parts = self.attention_in(self.attention_norm(hidden)).chunk(3, dim=-1)
        queries, keys, values = (part.unflatten(-1, (self.heads, -1)).transpose(1, 2) for part in parts)
        mixed = functional.scaled_dot_product_attention(queries, keys, values, is_causal=True)
        hidden = hidden + self.attention_out(mixed.transpose(1, 2).flatten(2))
        hidden = hidden + self.network_out(functional.gelu(self.network_in(self.network_norm(hidden))))
        return hidden
