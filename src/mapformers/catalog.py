"""The catalogue: every entry of the map, in the order of the survey; all lists are derived from it."""

from mapformers.blocks.average import AverageBlock
from mapformers.blocks.axial_image import AxialImageBlock
from mapformers.blocks.binary_tree import BinaryTreeBlock
from mapformers.blocks.etc import EtcBlock
from mapformers.blocks.lazyformer import LazyformerBlock
from mapformers.blocks.luna import LunaBlock
from mapformers.blocks.perceiver import PerceiverBlock
from mapformers.blocks.poolingformer import PoolingformerBlock
from mapformers.blocks.reversible import ReversibleBlock
from mapformers.blocks.set_attention import InducedSetBlock
from mapformers.blocks.star import StarBlock
from mapformers.blocks.transformer import TransformerBlock
from mapformers.core.card import Card
from mapformers.core.errors import require_known
from mapformers.heads.capsule import Capsule
from mapformers.heads.collaborative import Collaborative
from mapformers.heads.disagreement import Disagreement
from mapformers.heads.guided import Guided
from mapformers.heads.local_global import LocalGlobal
from mapformers.heads.merging import Concatenate
from mapformers.heads.projection import GroupedQuery, HeadSize, MultiHead, MultiQuery
from mapformers.heads.shared_qk import SharedQK
from mapformers.heads.talking_heads import TalkingHeads
from mapformers.mechanisms.compressed.linformer import Linformer
from mapformers.mechanisms.compressed.memory_compressed import MemoryCompressed
from mapformers.mechanisms.content.moba import Moba
from mapformers.mechanisms.content.nsa import Nsa
from mapformers.mechanisms.content.reformer import Reformer
from mapformers.mechanisms.content.routing import Routing
from mapformers.mechanisms.content.sac import Sac
from mapformers.mechanisms.linear.delta import Delta
from mapformers.mechanisms.linear.linear import Linear
from mapformers.mechanisms.linear.performer import Performer
from mapformers.mechanisms.linear.rfa import Rfa
from mapformers.mechanisms.low_rank.csalr import Csalr
from mapformers.mechanisms.low_rank.low_rank_band import LowRankBand
from mapformers.mechanisms.low_rank.nystrom import Nystrom
from mapformers.mechanisms.prototypes.clustered import Clustered
from mapformers.mechanisms.prototypes.improved_clustered import ImprovedClustered
from mapformers.mechanisms.prototypes.informer import Informer
from mapformers.mechanisms.sparse.axial import Axial
from mapformers.mechanisms.sparse.band import Band
from mapformers.mechanisms.sparse.bigbird import BigBird
from mapformers.mechanisms.sparse.block_local import BlockLocal
from mapformers.mechanisms.sparse.dilated import Dilated
from mapformers.mechanisms.sparse.full import Full
from mapformers.mechanisms.sparse.global_tokens import GlobalTokens
from mapformers.mechanisms.sparse.image_local import ImageLocal
from mapformers.mechanisms.sparse.longformer import Longformer
from mapformers.mechanisms.sparse.random_keys import RandomKeys
from mapformers.mechanisms.sparse.sparse_transformer import SparseTransformer
from mapformers.mechanisms.sparse.strided import Strided
from mapformers.priors.adaptive_span import AdaptiveSpan
from mapformers.priors.alibi import Alibi
from mapformers.priors.camtl import Camtl
from mapformers.priors.evolving import Evolving
from mapformers.priors.gaussian import Gaussian
from mapformers.priors.hard_gaussian import HardGaussian
from mapformers.priors.localness import Localness
from mapformers.priors.multi_scale import MultiScale
from mapformers.priors.realformer import RealFormer
from mapformers.priors.shaw import Shaw
from mapformers.priors.synthesizer import Synthesizer
from mapformers.priors.t5_bias import T5Bias

MECHANISMS = (
    Full,
    GlobalTokens,
    Band,
    Dilated,
    Strided,
    RandomKeys,
    BlockLocal,
    Longformer,
    BigBird,
    SparseTransformer,
    Axial,
    ImageLocal,
    Reformer,
    Sac,
    Routing,
    Moba,
    Nsa,
    Linear,
    Performer,
    Rfa,
    Delta,
    Clustered,
    ImprovedClustered,
    Informer,
    MemoryCompressed,
    Linformer,
    LowRankBand,
    Csalr,
    Nystrom,
)
SCORES = (
    Localness,
    Gaussian,
    Evolving,
    RealFormer,
    Camtl,
    HardGaussian,
    Synthesizer,
    Shaw,
    Alibi,
    T5Bias,
    TalkingHeads,
    AdaptiveSpan,
    MultiScale,
)
PROJECTIONS = (MultiHead, MultiQuery, GroupedQuery, HeadSize, Collaborative, LocalGlobal, SharedQK)
MERGES = (Concatenate, Capsule)
LOSSES = (Disagreement, Guided)
BLOCKS = (
    TransformerBlock,
    AverageBlock,
    LazyformerBlock,
    StarBlock,
    EtcBlock,
    BinaryTreeBlock,
    AxialImageBlock,
    ReversibleBlock,
    PoolingformerBlock,
    LunaBlock,
    PerceiverBlock,
    InducedSetBlock,
)

CATALOG: tuple[type, ...] = MECHANISMS + SCORES + PROJECTIONS + MERGES + LOSSES + BLOCKS


def catalog() -> tuple[Card, ...]:
    """The cards of everything, in the survey's order."""
    return tuple(entry.card for entry in CATALOG)  # type: ignore[attr-defined]


def loss_names() -> tuple[str, ...]:
    """The auxiliary losses that mechanisms, score terms and head losses return in training."""
    of_layers = (name for entry in (*MECHANISMS, *SCORES) for name in entry.loss_names)
    return tuple(dict.fromkeys((*of_layers, *head_loss_weights())))


def head_loss_weights() -> dict[str, float]:
    """The losses of heads with the weights that their papers give them."""
    return {name: weight for entry in LOSSES for name, weight in entry.loss_weights.items()}


def policy_names() -> tuple[str, ...]:
    """The log-probabilities of choices that mechanisms return beside them."""
    return tuple(dict.fromkeys(name for mechanism in MECHANISMS for name in mechanism.policy_names))


def find(entries: tuple[type, ...], name: str, what: str) -> type:
    """The entry of that name. Raises MapformersError with the three nearest names."""
    by_name = {entry.card.name: entry for entry in entries}  # type: ignore[attr-defined]
    require_known(what, "name", name, by_name)
    return by_name[name]
