"""The Vision Transformer, written out by hand.

Dosovitskiy et al., "An Image is Worth 16x16 Words: Transformers for Image Recognition at Scale",
ICLR 2021, https://arxiv.org/abs/2010.11929. Equation numbers below are that paper's.

Shapes in comments: b images, n tokens, d = dim (token width), h heads, k = dim_head.
"""

import torch
from einops import einsum, rearrange, reduce, repeat
from einops.layers.torch import Rearrange
from torch import nn


def pair(t):
    """(t, t), unless t is a tuple already: one number means a square."""
    return t if isinstance(t, tuple) else (t, t)


class PreNorm(nn.Module):
    """LayerNorm before `fn`: the LN(.) inside equations 2 and 3. (b, n, d) -> what `fn` returns."""

    def __init__(self, dim, fn):
        super().__init__()
        self.norm = nn.LayerNorm(dim)
        self.fn = fn

    def forward(self, x, **kwargs):
        return self.fn(self.norm(x), **kwargs)


class FeedForward(nn.Module):
    """The MLP of equation 3: two linear layers with a GELU between. (b, n, d) -> (b, n, d)."""

    def __init__(self, dim, hidden_dim, dropout=0.0):
        super().__init__()
        hidden = nn.Linear(dim, hidden_dim), nn.GELU(), nn.Dropout(dropout)
        self.net = nn.Sequential(*hidden, nn.Linear(hidden_dim, dim), nn.Dropout(dropout))

    def forward(self, x):
        return self.net(x)


class Attention(nn.Module):
    """Multi-head self-attention, equations 5 to 8 (appendix A). (b, n, d) -> (b, n, d)."""

    def __init__(self, dim, heads=4, dim_head=64, dropout=0.0):
        super().__init__()
        inner_dim = heads * dim_head
        self.heads = heads
        # q k^T of independent numbers of variance 1 has variance k: back to 1, so that no softmax saturates.
        self.scale = dim_head**-0.5
        self.attend = nn.Softmax(dim=-1)
        self.dropout = nn.Dropout(dropout)
        self.to_qkv = nn.Linear(dim, inner_dim * 3, bias=False)  # as equation 5, which has no bias
        self.to_out = nn.Sequential(nn.Linear(inner_dim, dim), nn.Dropout(dropout))

    def forward(self, x):
        # Equation 5: [q, k, v] = z U_qkv, for all heads at once.
        q, k, v = rearrange(self.to_qkv(x), "b n (qkv h k) -> qkv b h n k", qkv=3, h=self.heads)
        # Equation 6: A = softmax(q k^T / sqrt(D_h)), n x n weights a head. To scale q takes less time.
        weights = self.attend(einsum(q * self.scale, k, "b h i k, b h j k -> b h i j"))
        # Equation 7: SA(z) = A v.
        out = einsum(self.dropout(weights), v, "b h i j, b h j k -> b h i k")
        # Equation 8: MSA(z) = [SA_1(z); ...; SA_h(z)] U_msa.
        return self.to_out(rearrange(out, "b h n k -> b n (h k)"))


class Transformer(nn.Module):
    """The encoder: `depth` blocks of attention and MLP, each added to its input. (b, n, d) -> same."""

    def __init__(self, dim, depth, heads, dim_head, mlp_dim, dropout=0.0):
        super().__init__()
        self.layers = nn.ModuleList()
        for _ in range(depth):
            attention = PreNorm(dim, Attention(dim, heads, dim_head, dropout))
            feed_forward = PreNorm(dim, FeedForward(dim, mlp_dim, dropout))
            self.layers.append(nn.ModuleList([attention, feed_forward]))

    def forward(self, x):
        for attention, feed_forward in self.layers:
            x = attention(x) + x  # equation 2: z'_l = MSA(LN(z_{l-1})) + z_{l-1}
            x = feed_forward(x) + x  # equation 3: z_l = MLP(LN(z'_l)) + z'_l
        return x


class ViT(nn.Module):
    """Images (b, channels, height, width) -> logits (b, num_classes).

    Sizes are in pixels, one number or (height, width). `pool` is "cls" (the class token, as in the paper), or
    "mean" or "max" of all tokens. ValueError for another, or where the image does not divide into patches.
    """

    def __init__(self, *, image_size, patch_size, num_classes, dim, depth, heads, mlp_dim, pool="cls",
                 channels=1, dim_head=64, dropout=0.0, emb_dropout=0.0, mimetic=False):  # fmt: skip
        super().__init__()
        (height, width), (p1, p2) = pair(image_size), pair(patch_size)  # p: P in the paper
        if height % p1 or width % p2:
            raise ValueError(f"an image of {height}x{width} pixels does not divide into patches of {p1}x{p2}")
        if pool not in ("cls", "mean", "max"):
            raise ValueError(f"pool must be 'cls', 'mean' or 'max', not {pool!r}")
        num_patches, self.pool = (height // p1) * (width // p2), pool
        self.to_patch_embedding = nn.Sequential(
            Rearrange("b c (h p1) (w p2) -> b (h w) (p1 p2 c)", p1=p1, p2=p2),
            nn.Linear(channels * p1 * p2, dim),
        )
        # Small random values; with `mimetic`, sines and cosines take the place of those of the patches.
        self.pos_embedding = nn.Parameter(0.02 * torch.randn(1, num_patches + 1, dim))
        self.cls_token = nn.Parameter(0.02 * torch.randn(1, 1, dim))
        self.dropout = nn.Dropout(emb_dropout)
        self.transformer = Transformer(dim, depth, heads, dim_head, mlp_dim, dropout)
        self.to_latent = nn.Identity()  # nothing; it stands in the assignment's table of layers
        self.mlp_head = nn.Sequential(nn.LayerNorm(dim), nn.Linear(dim, num_classes))
        if mimetic:
            self.start_mimetic(height // p1, width // p2)

    @torch.no_grad()
    def start_mimetic(self, rows, columns):
        """`mimetic`: start near what training leads to (Trockman and Kolter, ICML 2023, arXiv:2305.09828)."""
        for attention, _ in self.transformer.layers:
            q, k, v = attention.fn.to_qkv.weight.chunk(3)
            k.copy_(q)  # tokens attend to those like themselves; there W_q W_k^T is nearly the identity
            attention.fn.to_out[0].weight.copy_(-v.T)  # there W_v W_out is nearly the negative identity
        # Sines and cosines of row and column (Vaswani et al. 2017, section 3.5), trained from there on.
        d = self.pos_embedding.shape[-1] // 4
        places = torch.cartesian_prod(torch.arange(rows), torch.arange(columns))  # (n, 2)
        angles = places[..., None] * 10000.0 ** -(torch.arange(d) / d)
        waves = rearrange([angles.sin(), angles.cos()], "wave n yx d -> n (yx wave d)")
        self.pos_embedding[0, 1:, : 4 * d] = waves

    def forward(self, img):
        # Equation 1: z_0 = [x_class; x_p^1 E; ...; x_p^N E] + E_pos.
        x = self.to_patch_embedding(img) + self.pos_embedding[:, 1:]
        cls_tokens = repeat(self.cls_token + self.pos_embedding[:, :1], "1 1 d -> b 1 d", b=x.shape[0])
        x = self.transformer(self.dropout(torch.cat((cls_tokens, x), dim=1)))
        # Equation 4: y = LN(z_L^0); the norm is the first layer of the head.
        x = x[:, 0] if self.pool == "cls" else reduce(x, "b n d -> b d", self.pool)
        return self.mlp_head(self.to_latent(x))
