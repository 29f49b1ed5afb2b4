"""Attribution: which part of the picture, and which words, make the similarity of an image and a text.

`similarity_maps` at the level of a word, a phrase or the sentence; `image_attention`, `fusion_attention` and `query_attention`;
`grad_cam`, `integrated_gradients` and `occlusion` (captum's) on the image side, `word_gradients` and `word_occlusion`
on the word side. `compare_maps` scores kinds of map on the same cases beside their controls, and
`weight_randomisation` and `input_randomisation` ask whether a map depends on what it claims to show.
"""

from .attention_side import fusion_attention, image_attention, query_attention
from .compare import CONTROLS, RULE, SCORES, Comparison, compare_maps, score_cases
from .gallery import KINDS, Asked, Gallery, Kind
from .image_side import baseline_images, grad_cam, integrated_gradients, occlusion, to_cells
from .levels import similarity_maps, text_queries
from .prior import phrase_prior
from .sanity import cascade, find_stages, input_randomisation, rank_correlation, seeded_mean, weight_randomisation
from .scoring import ImageScore, explaining, pair_similarity, score
from .word_side import WordScore, find, word_embeddings, word_gradients, word_groups, word_occlusion, words

__all__ = [
    "CONTROLS", "KINDS", "RULE", "SCORES", "Asked", "Comparison", "Gallery", "ImageScore", "Kind", "WordScore",
    "baseline_images", "cascade", "compare_maps", "explaining", "find", "find_stages", "fusion_attention",
    "grad_cam", "image_attention", "input_randomisation", "integrated_gradients", "occlusion", "pair_similarity",
    "phrase_prior", "query_attention", "rank_correlation", "score", "score_cases", "seeded_mean", "similarity_maps",
    "text_queries", "to_cells", "weight_randomisation", "word_embeddings", "word_gradients", "word_groups",
    "word_occlusion", "words",
]  # fmt: skip
