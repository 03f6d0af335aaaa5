"""The catalogue of image sets: what people call them, where they are from, and what must be known of them.

A set of the user's own needs no entry here.
"""

from dataclasses import dataclass

RESEARCH = "research use"
DIGITS = "Alpaydin & Kaynak 1998, scikit-learn's copy"


@dataclass(frozen=True)
class About:
    """What is known of an image set; empty where nothing is."""

    title: str
    source: str = ""
    terms: str = ""
    note: str = ""
    in_imagenet: str = ""  # what ImageNet-1k has of it, which pretrained weights were trained on
    classes: tuple[str, ...] = ()  # names by label, for a file that does not name them


CATALOGUE = {
    "cifar10": About(
        "CIFAR-10",
        "Krizhevsky 2009",
        RESEARCH,
        "of the copy here, 98 training images (93 ship, 5 horse) are from JPEG",
        "most of its classes",
        ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck"),
    ),
    "cifar100": About("CIFAR-100", "Krizhevsky 2009", RESEARCH, "fine labels", "many of its classes"),
    "tinyimagenet": About(
        "Tiny ImageNet",
        "Stanford CS231n; Deng et al. 2009",
        RESEARCH,
        "64×64 test images resized to 32×32 (bilinear, antialiased): not the ODIN archive",
        "all of its 200 classes",
    ),
    "dtd10": About("DTD (10 classes)", "Cimpoi et al. 2014", RESEARCH, "10 of the 47 texture classes"),
    "dtd": About("DTD", "Cimpoi et al. 2014", RESEARCH),
    "mnist": About("MNIST", "LeCun et al. 1998", "CC BY-SA 3.0"),
    "omniglot": About("Omniglot", "Lake et al. 2015", "MIT", "downsampled to 28×28"),
    "svhn": About("SVHN", "Netzer et al. 2011"),
    "places365": About("Places365", "Zhou et al. 2017"),
    "digits": About("digits 0–6", DIGITS, "that of scikit-learn", "split 70/30 by class"),
    "digits789": About("digits 7–9", DIGITS, "that of scikit-learn"),
    "letters": About("letters", "drawn with fonts of matplotlib", "those of matplotlib", "none that reads as a digit"),
    "photos": About(
        "photographs",
        "crops of scikit-learn's sample images",
        "CC BY 2.0",
        in_imagenet="both motifs, a temple and a flower",
    ),
}


def look_up(name: str) -> About:
    """Return what is known of an image set; of one that is not in the catalogue, its name alone."""
    if name.startswith("noise:"):
        return About(name.replace("noise:", "noise "), "computed")
    return CATALOGUE.get(name, About(name))


def display_name(name: str) -> str:
    """Return what people call an image set."""
    return look_up(name).title
