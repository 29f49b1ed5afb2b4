"""Text models by the names people type: from a folder or from the local Hugging Face cache, never from the network.

Only safetensors are read (a pickle can run code) and code that comes with a model is never run.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from ..errors import KitError

if TYPE_CHECKING:
    import torch
    from torch import nn

    from ..study import Tokens


@dataclass(frozen=True)
class HubModel:
    """One public text model: its hub identifier, who uses it, and whether the kit can read it."""

    identifier: str
    used_by: str
    loadable: bool = True  # without code from the hub
    note: str = ""


_CONVERT = "the hub may hold only a pickle: convert it once, see the message of load_model"

NAMES: dict[str, HubModel] = {
    "cxr-bert-general": HubModel("microsoft/BiomedVLP-CXR-BERT-general", "BioViL, M-FLAG", note=_CONVERT),
    "cxr-bert-specialized": HubModel(
        "microsoft/BiomedVLP-CXR-BERT-specialized", "BioViL", loadable=False,
        note="model type cxr-bert runs code from the hub; its BERT weights must be saved once as a plain BertModel",
    ),
    "biovil-t": HubModel(
        "microsoft/BiomedVLP-BioViL-T", "BioViL-T", loadable=False,
        note="text tower of model type cxr-bert, as above; the image tower is a pickle",
    ),
    "biomedclip": HubModel(
        "microsoft/BiomedCLIP-PubMedBERT_256-vit_base_patch16_224", "BiomedCLIP", loadable=False,
        note="an open_clip checkpoint; its towers have the shapes of pubmedbert and timm's vit_base_patch16_224",
    ),
    "pubmedbert": HubModel(
        "microsoft/BiomedNLP-BiomedBERT-base-uncased-abstract-fulltext", "BiomedCLIP",
        note=f"earlier called BiomedNLP-PubMedBERT; {_CONVERT}",
    ),
    "bio-clinicalbert": HubModel("emilyalsentzer/Bio_ClinicalBERT", "ConVIRT, GLoRIA, MGCA, MedCLIP", note=_CONVERT),
    "biobert": HubModel("dmis-lab/biobert-v1.1", "many baselines", note=_CONVERT),
    "biolinkbert": HubModel("michiyasunaga/BioLinkBERT-base", "baselines", note=_CONVERT),
    "bert-base": HubModel("google-bert/bert-base-uncased", "MMBERT, MedViLL"),
    "roberta-base": HubModel("FacebookAI/roberta-base", "M3AE"),
    "gpt2-base": HubModel("openai-community/gpt2", "report decoders"),
}  # fmt: skip


def resolve(name: str) -> str:
    """A short name of `NAMES`, a hub identifier or a folder, as transformers takes it.

    Spelling is forgiving: "PubMedBERT", "Bio_ClinicalBERT" and "BiomedVLP-CXR-BERT-general" are all found.
    """
    if Path(name).expanduser().is_dir():
        return str(Path(name).expanduser())
    known = {_plain(short): model for short, model in NAMES.items()}
    known |= {_plain(model.identifier.split("/")[-1]): model for model in NAMES.values()}
    known |= {_plain(model.identifier): model for model in NAMES.values()}
    model = known.get(_plain(name))
    if model is None:
        return name
    if not model.loadable:
        raise KitError(f"text model {model.identifier!r} cannot be read without running foreign code: {model.note}")
    return model.identifier


def load_model(name: str) -> nn.Module:
    """The transformers model of a folder or of the local cache, with its weights; one line when it is not there."""
    import transformers

    place = resolve(name)
    _readable(place, name)
    options = dict(local_files_only=True, trust_remote_code=False)
    try:
        config = transformers.AutoConfig.from_pretrained(place, **options)
    except (OSError, ValueError) as error:
        raise KitError(f"text model {name!r}: its config.json cannot be used: {_first_line(error)}") from error
    if config.model_type in ("bert", "roberta"):
        options["add_pooling_layer"] = False
    loud = transformers.logging.get_verbosity()
    transformers.logging.set_verbosity_error()  # its report of unused heads; missing weights are refused below
    try:
        model, loading = transformers.AutoModel.from_pretrained(
            place, config=config, use_safetensors=True, output_loading_info=True, **options
        )
    except (OSError, ValueError) as error:
        raise KitError(
            f"text model {name!r}: no safetensors weights to read ({_first_line(error)}); when there is only a "
            f"pickle, convert it once: transformers.AutoModel.from_pretrained({place!r}).save_pretrained(FOLDER), "
            "then give FOLDER"
        ) from error
    finally:
        transformers.logging.set_verbosity(loud)
    missing = sorted(loading["missing_keys"])
    if missing:
        raise KitError(
            f"text model {name!r}: {len(missing)} weights are missing, for example {missing[0]!r}; they would start at "
            "random: take a complete checkpoint"
        )
    return model


@dataclass(frozen=True)
class HubTokenizer:
    """A model's own tokenizer with the two things the kit asks of one: `encode` and `vocabulary_size`."""

    tokenizer: object

    @property
    def vocabulary_size(self) -> int:
        return len(self.tokenizer)

    def encode(self, texts: Sequence[str], *, length: int) -> Tokens:
        """Token ids and mask (B, T), padded on the right to the longest text, at most `length`."""
        from ..study import Tokens

        encoded = self.tokenizer(
            list(texts), truncation=True, max_length=length, padding=True, padding_side="right", return_tensors="pt"
        )
        return Tokens(encoded["input_ids"], encoded["attention_mask"].bool())

    def word_ids(self, texts: Sequence[str], *, length: int) -> torch.Tensor:
        """(B, T) int64: the word each token belongs to, -1 for none; for `pooling.aggregate_words`."""
        import torch

        encoded = self.tokenizer(list(texts), truncation=True, max_length=length, padding=True, padding_side="right")
        rows = [[-1 if word is None else word for word in encoded.word_ids(i)] for i in range(len(texts))]
        return torch.tensor(rows, dtype=torch.int64)


def load_tokenizer(name: str) -> HubTokenizer:
    """The tokenizer that belongs to `load_model(name)`."""
    import transformers

    place = resolve(name)
    _readable(place, name)
    try:
        tokenizer = transformers.AutoTokenizer.from_pretrained(place, local_files_only=True, trust_remote_code=False)
    except (OSError, ValueError) as error:
        raise KitError(f"text model {name!r}: its tokenizer cannot be read: {_first_line(error)}") from error
    if tokenizer.pad_token is None:  # GPT-2 has none; the mask keeps whatever stands there out of every result
        tokenizer.pad_token = tokenizer.eos_token
    return HubTokenizer(tokenizer)


def _readable(place: str, name: str) -> None:
    """Refuse early, in one line, what is neither a folder with a config nor in the local cache."""
    if Path(place).is_dir():
        if not (Path(place) / "config.json").is_file():
            raise KitError(f"text model folder {name!r} has no config.json: give the folder of save_pretrained(...)")
        return
    from huggingface_hub import try_to_load_from_cache
    from huggingface_hub.errors import HFValidationError

    try:
        cached = isinstance(try_to_load_from_cache(place, "config.json"), str)
    except HFValidationError:
        cached = False
    if not cached:
        raise KitError(
            f"text model {name!r} is neither a folder nor in the local cache, and the kit does not download: run "
            f"`hf download {place}` once where there is a network, or use 'bert', 'gpt2', 'kit_bert' or one of "
            f"{', '.join(NAMES)}"
        )


def _plain(name: str) -> str:
    return name.lower().replace("_", "-")


def _first_line(error: Exception) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0][:200]
