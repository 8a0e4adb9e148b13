"""The vision transformer (Dosovitskiy et al., ICLR 2021), of a size for small images.

Attention is written out in linear layers and a softmax: for sequences as short as these a fused kernel gains little,
and it would have no double backward (the Hessian), no forward-mode derivative (the linearised Laplace) and no place
for noise in activations (LRT).
"""

from typing import Literal, get_args

import torch
from jaxtyping import Float
from torch import Tensor, nn

from flatbayes.models.checks import check_arguments, check_image_shape, check_sizes
from flatbayes.models.initialization import init_truncated_normal_

Pooling = Literal["class", "mean"]
INIT_STD = 0.02


class ViT(nn.Module):
    """Patches of an image as a sequence, through blocks of self-attention and an MLP, each after LayerNorm.

    Args:
        input_shape: Channels, height and width of an image; both a multiple of the patch.
        num_classes: Size of the output.
        patch: Height and width of a patch in pixels.
        dim: Features of each patch.
        depth: Number of blocks.
        heads: Of the attention; a divisor of dim.
        mlp_ratio: Hidden units of a block's MLP, as a multiple of dim.
        pool: What the last layer sees: `class`, a token that is learnt, or `mean`, the mean over patches.
        dropout: Probability of dropping a unit, of the first features and of what each attention and MLP adds.

    Raises:
        ValueError: The inputs are not images or not made of patches, a size is not positive, dim is not a multiple of
            heads, there is no such pooling, or the dropout rate is outside [0, 1).
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
                f"An image of {height} x {width} pixels is not made of whole patches of {patch} x {patch}. Choose "
                "another patch, or scale the images."
            )
        if dim % heads:
            raise ValueError(f"dim must be a multiple of heads, got dim={dim} and heads={heads}.")
        if pool not in get_args(Pooling):
            raise ValueError(f"pool must be {' or '.join(get_args(Pooling))}, got {pool!r}.")
        tokens = (height // patch) * (width // patch) + (pool == "class")
        self.patches = nn.Conv2d(channels, dim, patch, stride=patch)
        self.class_token = nn.Parameter(torch.empty(1, 1, dim)) if pool == "class" else None
        self.positions = nn.Parameter(torch.empty(1, tokens, dim))
        self.dropout = nn.Dropout(dropout)
        self.blocks = nn.Sequential(*(TransformerBlock(dim, heads, mlp_ratio * dim, dropout) for _ in range(depth)))
        self.norm = nn.LayerNorm(dim, eps=1e-6)
        self.classifier = nn.Linear(dim, num_classes)
        init_truncated_normal_(self, INIT_STD)
        for tokens_learnt in (self.class_token, self.positions):
            if tokens_learnt is not None:
                nn.init.trunc_normal_(tokens_learnt, std=INIT_STD)

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
    """x + attention(norm(x)), and then x + mlp(norm(x)).

    Args:
        dim: Features of each token.
        heads: Of the attention.
        hidden: Units of the MLP.
        dropout: Probability of dropping a unit of what either adds.
    """

    def __init__(self, dim: int, heads: int, hidden: int, dropout: float) -> None:
        super().__init__()
        self.norm1, self.attention = nn.LayerNorm(dim, eps=1e-6), SelfAttention(dim, heads)
        self.norm2 = nn.LayerNorm(dim, eps=1e-6)
        self.mlp = nn.Sequential(nn.Linear(dim, hidden), nn.GELU(), nn.Dropout(dropout), nn.Linear(hidden, dim))
        self.dropout = nn.Dropout(dropout)

    def forward(self, x: Float[Tensor, "batch tokens dim"]) -> Float[Tensor, "batch tokens dim"]:
        """The next features of the tokens."""
        x = x + self.dropout(self.attention(self.norm1(x)))
        found: Tensor = x + self.dropout(self.mlp(self.norm2(x)))
        return found


class SelfAttention(nn.Module):
    """Multi-head self-attention (Vaswani et al., NeurIPS 2017): softmax(q kᵀ / sqrt(size of a head)) v.

    Args:
        dim: Features of each token.
        heads: A divisor of dim.
    """

    def __init__(self, dim: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.queries_keys_values = nn.Linear(dim, 3 * dim)
        self.out = nn.Linear(dim, dim)

    def forward(self, x: Float[Tensor, "batch tokens dim"]) -> Float[Tensor, "batch tokens dim"]:
        """What each token takes from all."""
        batch, tokens, dim = x.shape
        size = dim // self.heads
        joint = self.queries_keys_values(x).view(batch, tokens, 3, self.heads, size)
        queries, keys, values = joint.permute(2, 0, 3, 1, 4).unbind()
        weights = (queries @ keys.transpose(-2, -1) * size**-0.5).softmax(-1)
        found: Tensor = self.out((weights @ values).transpose(1, 2).reshape(batch, tokens, dim))
        return found
