"""Small additions to a trained model: LoRA changes its layers, textual inversion adds words.

Files of all formats are read by `weights_loader.load_lora` and `weights_loader.load_embedding`.
"""

from minisd.adapters.lora import Lora, LowRank, LowRankChanges
from minisd.adapters.textual_inversion import add_embeddings

__all__ = ["Lora", "LowRank", "LowRankChanges", "add_embeddings"]
