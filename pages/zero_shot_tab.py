"""The zero-shot tab of the demo page: a photo, texts in any language, and a bar for each."""

from pathlib import Path

from clip import load_clip
from errors import UserError
from pages.uploads import photo_reader

_MOST_TEXTS, _LONGEST_TEXT = 50, 500
_EXAMPLE = "a cat\nun chien\nein Pferd\nun camión\nएक पक्षी\n一艘船"


class ZeroShot:
    """A CLIP model behind the page.

    Args:
        weights: run of LiT, or a CLIP file with its YAML.
    """

    def __init__(self, weights: str):
        self.clip = load_clip(weights)
        if self.clip.tokenizer is None:
            self.clip.tokenize("")  # says where a tokenizer comes from

    def classify(self, photo: str, lines: str) -> dict[str, float]:
        """Return the probability of each text for a photo.

        Args:
            lines: one text per line.

        Raises:
            UserError: if there is no text, or too many, or the photo cannot be read.
        """
        texts = list(dict.fromkeys(line.strip() for line in (lines or "").splitlines() if line.strip()))
        if not texts:
            raise UserError("Write a text in each line.")
        if len(texts) > _MOST_TEXTS or max(map(len, texts)) > _LONGEST_TEXT:
            raise UserError(f"At most {_MOST_TEXTS} texts of {_LONGEST_TEXT} characters are taken.")
        try:
            probabilities = self.clip.classify(photo, texts)[0].tolist()
        except UserError as error:
            raise UserError(str(error).replace(str(Path(photo).parent), "")) from error
        return dict(zip(texts, probabilities, strict=True))


def add_zero_shot(gradio, zero_shot: ZeroShot, uploads: Path) -> None:
    """Add the tab.

    Args:
        uploads: directory in which Gradio keeps uploaded files.
    """
    gradio.Markdown("# Zero-shot classification\nCompare a photo with texts, in any language the model has learned.")
    with gradio.Row():
        with gradio.Column(scale=1):
            photo = gradio.Image(type="filepath", sources=["upload", "clipboard"], label="Photo", elem_id="zs-photo")
            photo.preprocess = photo_reader(gradio, uploads)
            texts = gradio.Textbox(_EXAMPLE, lines=8, max_lines=20, label="A text in each line", elem_id="zs-texts")
            button = gradio.Button("Compare", elem_id="zs-button")
        with gradio.Column(scale=1):
            bars = gradio.Label(label="Probability of each text", num_top_classes=_MOST_TEXTS, elem_id="zs-bars")

    def compare(photo, texts):  # Gradio names the endpoint and its values after these
        if photo is None:
            raise gradio.Error("Upload a photo first.")
        try:
            return zero_shot.classify(photo, texts)
        except UserError as error:
            raise gradio.Error(str(error)) from error

    gradio.on([photo.upload, button.click], compare, [photo, texts], bars)
