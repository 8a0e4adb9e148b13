"""Vision transformer, ViT (Dosovitskiy et al., ICLR 2021), with a default size for small images.

Attention consists of linear layers and a softmax instead of a fused kernel. For short sequences the kernel saves
little time, and it supports no double backward (the Hessian), no forward-mode derivative (the linearised Laplace) and
no activation noise (LRT).
"""

from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor, nn

from flatbayes.core.names import check_choice
from flatbayes.models.building import check_arguments, check_image_shape, check_sizes, init_truncated_normal_

Pooling = Literal["class", "mean"]
INIT_STD = 0.02
"""Standard deviation of the initial weights."""


class ViT(nn.Module):
    """A sequence of image patches, processed by blocks of self-attention and an MLP, each after LayerNorm.

    Args:
        input_shape: Channels, height and width of an image; height and width are multiples of the patch.
        num_classes: Size of the output.
        patch: Height and width of a patch in pixels.
        dim: Features of each patch.
        depth: Number of blocks.
        heads: Number of attention heads, a divisor of dim.
        mlp_ratio: Hidden units of a block's MLP, as a multiple of dim.
        pool: Input of the last layer: `class`, the features of a learnt token, or `mean`, the mean over patches.
        dropout: Dropout rate of the first features and of the output of each attention and MLP.

    Raises:
        ValueError: The inputs are not images or do not consist of whole patches, a size is not positive, dim is not a
            multiple of heads, there is no such pooling, or the dropout rate is outside [0, 1).

    Examples:
        >>> model = ViT((3, 32, 32), num_classes=10, dim=24, depth=2)
        >>> model(torch.randn(2, 3, 32, 32)).shape
        torch.Size([2, 10])
    """

    def __init__(
        self,
        input_shape: tuple[int, ...],
        num_classes: int,
        patch: int = 4,
        dim: int = 192,
        depth: int = 6,
        heads: int = 3,
        mlp_ratio: int = 4,
        pool: Pooling = "class",
        dropout: float = 0.0,
    ) -> None:
        super().__init__()
        check_arguments(input_shape, num_classes, dropout)
        channels = check_image_shape(input_shape, "ViT")
        sizes = {"patch": patch, "dim": dim, "depth": depth, "heads": heads, "mlp_ratio": mlp_ratio}
        for name, size in sizes.items():
            check_sizes(name, [size])
        _, height, width = input_shape
        if height % patch or width % patch:
            raise ValueError(
                f"An image of {height} x {width} pixels does not consist of whole patches of {patch} x {patch}. "
                "Choose another patch, or scale the images."
            )
        if dim % heads:
            raise ValueError(f"dim must be a multiple of heads, got dim={dim} and heads={heads}.")
        check_choice("pool", pool, Pooling)
        num_tokens = (height // patch) * (width // patch) + (pool == "class")
        self.patches = nn.Conv2d(channels, dim, patch, stride=patch)
        self.class_token = nn.Parameter(torch.empty(1, 1, dim)) if pool == "class" else None
        self.positions = nn.Parameter(torch.empty(1, num_tokens, dim))
        self.dropout = nn.Dropout(dropout)
        self.blocks = nn.Sequential(*(TransformerBlock(dim, heads, mlp_ratio * dim, dropout) for _ in range(depth)))
        self.norm = nn.LayerNorm(dim, eps=1e-6)
        self.classifier = nn.Linear(dim, num_classes)
        init_truncated_normal_(self, INIT_STD)
        for embedding in (self.class_token, self.positions):
            if embedding is not None:
                nn.init.trunc_normal_(embedding, std=INIT_STD)

    def forward(self, x: Float[Tensor, "batch channels height width"]) -> Float[Tensor, "batch classes"]:
        """Logits."""
        tokens: Tensor = self.patches(x).flatten(2).transpose(1, 2)
        if self.class_token is not None:
            tokens = torch.cat([self.class_token.expand(len(tokens), -1, -1), tokens], dim=1)
        tokens = self.norm(self.blocks(self.dropout(tokens + self.positions)))
        pooled = tokens.mean(1) if self.class_token is None else tokens[:, 0]
        logits: Tensor = self.classifier(pooled)
        return logits


class TransformerBlock(nn.Module):
    """Pre-norm transformer block: x + attention(norm(x)), then x + mlp(norm(x))."""

    def __init__(self, dim: int, heads: int, hidden: int, dropout: float) -> None:
        super().__init__()
        self.norm1, self.attention = nn.LayerNorm(dim, eps=1e-6), SelfAttention(dim, heads)
        self.norm2 = nn.LayerNorm(dim, eps=1e-6)
        self.mlp = nn.Sequential(nn.Linear(dim, hidden), nn.GELU(), nn.Dropout(dropout), nn.Linear(hidden, dim))
        self.dropout = nn.Dropout(dropout)

    def forward(self, x: Float[Tensor, "batch tokens dim"]) -> Float[Tensor, "batch tokens dim"]:
        """The next features of the tokens."""
        x = x + self.dropout(self.attention(self.norm1(x)))
        out: Tensor = x + self.dropout(self.mlp(self.norm2(x)))
        return out


class SelfAttention(nn.Module):
    """Multi-head self-attention (Vaswani et al., NeurIPS 2017): softmax(q kᵀ / sqrt(size of a head)) v.

    The number of heads is a divisor of `dim`.
    """

    def __init__(self, dim: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.queries_keys_values = nn.Linear(dim, 3 * dim)
        self.out = nn.Linear(dim, dim)

    def forward(self, x: Float[Tensor, "batch tokens dim"]) -> Float[Tensor, "batch tokens dim"]:
        """The attention output of each token."""
        batch, tokens, dim = x.shape
        head_dim = dim // self.heads
        projected = self.queries_keys_values(x).view(batch, tokens, 3, self.heads, head_dim)
        queries, keys, values = projected.permute(2, 0, 3, 1, 4).unbind()
        weights = (queries @ keys.transpose(-2, -1) * head_dim**-0.5).softmax(-1)
        out: Tensor = self.out((weights @ values).transpose(1, 2).reshape(batch, tokens, dim))
        return out
