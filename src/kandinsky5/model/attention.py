"""Multi-head attention with normalised queries and keys, over the visual tokens or from them to the text.

Comes in: token states, optionally a context, a mask of the context's real tokens, a rotation. Goes out: token states.
Which kernel computes the softmax product is diffusers' attention dispatch, so `set_attention_backend` reaches it; of
the back ends this file knows only which take no mask.

Shapes: B batch, N query tokens, M key tokens, D width, A heads of K channels.
"""

from typing import Any, Final

from diffusers.models.attention import AttentionModuleMixin
from diffusers.models.attention_dispatch import _AttentionBackendRegistry, dispatch_attention_fn
from torch import Tensor, nn

from kandinsky5.model.float8_attention import HeadScales
from kandinsky5.model.stretches import EAGER_STRETCHES, Stretches

WITHOUT_MASK: Final = frozenset(
    (
        *("flash", "flash_hub", "_flash_3", "_flash_3_hub", "flash_4_hub", "aiter_fa2_hub"),
        *("_native_flash", "_native_xla", "sage", "sage_hub", "sage_blackwell_hub"),
        *("_sage_qk_int8_pv_fp8_cuda", "_sage_qk_int8_pv_fp8_cuda_sm90"),
        *("_sage_qk_int8_pv_fp16_cuda", "_sage_qk_int8_pv_fp16_triton"),
    )
)
"""Back ends that raise when they are given a mask. Each takes the argument, so only its body says so (diffusers 0.42.1,
`models/attention_dispatch.py`); `tests/model/test_attention_backends.py` asks every one of the installed diffusers."""


class SoftmaxAttention:
    """The computation between the projections; holds the back end that diffusers' setters choose."""

    _attention_backend = None
    _parallel_config = None

    @property
    def takes_mask(self) -> bool:
        """Whether the back end can be told which keys are padding; where none was chosen, diffusers' active one."""
        return back_end_of(self) not in WITHOUT_MASK

    def __call__(self, query: Tensor, key: Tensor, value: Tensor, key_mask: Tensor | None) -> Tensor:
        """(B, N, A, K), (B, M, A, K), (B, M, A, K), (B, M) bool -> (B, N, A, K)."""
        return dispatch_attention_fn(
            query,
            key,
            value,
            attn_mask=None
            if key_mask is None
            else key_mask[:, None, None],  # (B, 1, 1, M) is known to each that takes a mask
            backend=self._attention_backend,
            parallel_config=self._parallel_config,
        )


def back_end_of(processor: Any) -> str | None:
    """Which of diffusers' back ends a processor computes with now; None where it is not ours, so that nobody knows."""
    if type(processor) is not SoftmaxAttention:
        return None
    chosen: str = processor._attention_backend or _AttentionBackendRegistry.get_active_backend()[0]
    return chosen


class HeadNorm(nn.RMSNorm):
    """RMS norm of each head and, where they are given, the turns of rotary positions; rounded once, after both."""

    stretches: Stretches = EAGER_STRETCHES

    def forward(self, input: Tensor, rotation: Tensor | None = None) -> Tensor:
        """(B, N, A, K), (N, K / 2, 2) or None -> (B, N, A, K) in the dtype of the input."""
        return self.stretches.norm_rotate(input, self.weight, rotation)


class Attention(nn.Module, AttentionModuleMixin):
    """Self-attention, or cross-attention when a context is given."""

    _default_processor_cls = SoftmaxAttention
    _available_processors = (SoftmaxAttention,)
    _supports_qkv_fusion = False
    head_scales: HeadScales | None = None
    """Of self-attention that may be in float8 (`quantising.scale_heads`)."""

    def __init__(self, model_dim: int, head_dim: int):
        super().__init__()
        self.num_heads = model_dim // head_dim
        self.to_query = nn.Linear(model_dim, model_dim)
        self.to_key = nn.Linear(model_dim, model_dim)
        self.to_value = nn.Linear(model_dim, model_dim)
        self.query_norm = HeadNorm(head_dim)
        self.key_norm = HeadNorm(head_dim)
        self.out_layer = nn.Linear(model_dim, model_dim)
        self.set_processor(SoftmaxAttention())  # type: ignore[operator]

    def forward(
        self,
        x: Tensor,
        context: Tensor | None = None,
        key_mask: Tensor | None = None,
        rotation: Tensor | None = None,
    ) -> Tensor:
        """(B, N, D) -> (B, N, D).

        Args:
            x: token states.
            context: (B, M, D) states that keys and values are taken from; `x` itself when None.
            key_mask: (B, M) bool, True where a key may be attended to; None means everywhere.
            rotation: (N, K / 2, 2) cosine and sine, applied to queries and keys (self-attention only).
        """
        source = x if context is None else context
        query, key, value = (
            layer(states).unflatten(-1, (self.num_heads, -1))
            for layer, states in ((self.to_query, x), (self.to_key, source), (self.to_value, source))
        )
        query, key = self.query_norm(query, rotation), self.key_norm(key, rotation)
        attend: Any = self.processor  # a SoftmaxAttention, or what `set_attn_processor` put in its place
        return self.out_layer(attend(query, key, value, key_mask).flatten(-2))
