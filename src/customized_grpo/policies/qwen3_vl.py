"""Qwen3-VL's processor for text and pictures, without the part for videos, which needs torchvision."""

from typing import Any, final

_KINDS = ("image", "video")
_MARKS = ("vision_start", "vision_end")


@final
class PictureProcessor:
    """What a policy reads in place of transformers' whole ``Qwen3VLProcessor``."""

    @staticmethod
    def from_pretrained(source: str, *, subfolder: str, revision: str | None) -> Any:
        """A ``Qwen3VLProcessor`` that takes text and pictures, of a folder or hub id.

        It leaves the size of a picture whose sides are whole slots alone: the transformer has four tokens for each
        slot, and pictures below the processor's least number of pixels would get more slots than tokens.
        """
        from transformers import AutoTokenizer, Qwen2VLImageProcessorPil, Qwen3VLProcessor

        where: dict[str, Any] = {"subfolder": subfolder, "revision": revision}
        # The PIL processor by name: with torchvision installed, the default would be another one.
        pictures: Any = Qwen2VLImageProcessorPil.from_pretrained(source, **where)
        pictures.size = {"shortest_edge": 1, "longest_edge": 2**40}
        tokenizer: Any = AutoTokenizer.from_pretrained(source, **where)
        processor: Any = Qwen3VLProcessor.__new__(Qwen3VLProcessor)  # its __init__ asks for a processor of videos
        processor.tokenizer, processor.image_processor = tokenizer, pictures
        processor.chat_template = tokenizer.chat_template
        for kind in _KINDS:
            _name(processor, f"{kind}_token", f"<|{kind}_pad|>")
        for mark in _MARKS:
            _name(processor, f"{mark}_token", f"<|{mark}|>")
        return processor


def _name(processor: Any, name: str, token: str) -> None:
    setattr(processor, name, token)
    setattr(processor, f"{name}_id", processor.tokenizer.convert_tokens_to_ids(token))
