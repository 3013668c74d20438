"""What the data files hold, where it comes from, and which rows are images."""

from numpyro_ebm.datasets.dataset import ImageOrder

_DEBD = "Density Estimation Binary Datasets (Lowd & Davis, 2010; Van Haaren & Davis, 2012)"
_NADE = "Binary set with the splits of Larochelle & Murray (2011)"
_RBM = "of binarized MNIST; read it with `load_rbm`, which shows its notice"
_DEBD_NAMES = "accidents baudio bbc bnetflix dna jester nltcs plants pumsb_star".split()

DESCRIPTIONS = {
    "binary_alphadigits": "Handwritten 0-9 and A-Z, 39 of each, 20x16; `all_y` in 0..35. "
    "One set without splits: everything is in `train`",
    "bridgesampling_ier": "Plain arrays `Y` and `columns`: six exchange rates (West & Harrison, "
    "1997), from the R package bridgesampling",
    "bridgesampling_turtles": "Plain arrays `y`, `x`, `clutch`: survival of 244 newborn turtles "
    "(Janzen et al., 2000), from the R package bridgesampling",
    "caltech101_silhouettes_28": "Caltech 101 Silhouettes, 28x28 (B. Marlin's split 1), labels "
    "1..101. Polarity as stored: 0 is the object, 1 the background (work that reports the object "
    "as 1 uses 1 - x). The pixels are stored column by column (image_order 'F')",
    "mnist_fixed_binarized": "MNIST binarized once at random (Larochelle's files for Salakhutdinov "
    "& Murray, 2008), 28x28; rows are not in the order of MNIST, so there are no labels",
    "mnist_gray": "MNIST (LeCun et al., 1998), 28x28 intensities 0..255, flattened, with labels; "
    "60,000 for training, 10,000 for test, no validation split",
    "nade_adult": f"{_NADE}: UCI Adult; the order of the test rows is not the original one",
    "nade_dna": f"{_NADE}: DNA splice junctions",
    "nade_mushrooms": f"{_NADE}: UCI Mushrooms",
    "nade_nips": f"{_NADE}: words of the NIPS-0-12 papers",
    "rbm_salakhutdinov_murray_cd25_500": "The 784x500 RBM, trained with CD-25, of Salakhutdinov & "
    f"Murray (2008), {_RBM}",
    "rbm_salakhutdinov_murray_toy_15": "A 784x15 RBM trained with the programs of Salakhutdinov & "
    f"Murray (2008), {_RBM}",
    "rna_RF00379": "Aligned RNA sequences of family RF00379 (Rfam): integers 0..4, the letters "
    "of `extras['alphabet']`. One set without splits: everything is in `train`",
} | {f"debd_{name}": f"{_DEBD}: {name}" for name in _DEBD_NAMES}

IMAGE_SHAPES = {
    "binary_alphadigits": (20, 16),
    "caltech101_silhouettes_28": (28, 28),
    "mnist_fixed_binarized": (28, 28),
    "mnist_gray": (28, 28),
}
IMAGE_ORDERS: dict[str, ImageOrder] = {"caltech101_silhouettes_28": "F"}
