"""Draw the picture at the top of the README: python assets/pictures/tour.py"""

import textwrap
from pathlib import Path

from medvlp_kit.figures import page, style
from medvlp_kit.phantoms import Phantoms

SIZE = 224
studies = Phantoms(400, seed=5, split="test", image_size=SIZE, style="prose")
chosen = []
for finding in ("Pleural Effusion", "Lung Lesion", "Support Devices", "Pneumothorax"):
    chosen.append(next(
        i for i in range(len(studies))
        if i not in chosen and len(studies.scene(i).signs) == 1 and (sign := studies.scene(i).sign(finding))
        and sign.severity != "mild" and sign.certainty == "definite" and not studies.scene(i).prior
    ))  # fmt: skip


@style.styled
def draw():
    figure, axes = style.new(1, 4, size=(11, 3.3))
    for axis, index, picture in zip(axes, chosen, studies.images(chosen, size=SIZE)):
        axis.imshow(picture[0], cmap="gray", vmin=0, vmax=1)
        axis.set_axis_off()
        for region in studies.regions(index, size=SIZE):
            x0, y0, x1, y1 = region.box
            axis.plot([x0, x1, x1, x0, x0], [y0, y0, y1, y1, y0], color="#E69F00", linewidth=1.5)
        words = " ".join(studies.report(index).impression.split())
        axis.text(0.5, -0.05, textwrap.fill(words, 34), transform=axis.transAxes, ha="center", va="top", fontsize=10)
    return figure


data, _ = page.png(draw())
Path(__file__).with_suffix(".png").write_bytes(data)
