"""CIFAR-100, with its 100 fine classes as labels."""

from mf_zoo.data.datasets import Dataset

_CLASSES = (
    "apple aquarium_fish baby bear beaver bed bee beetle bicycle bottle bowl boy bridge bus "
    "butterfly camel can castle caterpillar cattle chair chimpanzee clock cloud cockroach couch "
    "crab crocodile cup dinosaur dolphin elephant flatfish forest fox girl hamster house kangaroo "
    "keyboard lamp lawn_mower leopard lion lizard lobster man maple_tree motorcycle mountain mouse "
    "mushroom oak_tree orange orchid otter palm_tree pear pickup_truck pine_tree plain plate poppy "
    "porcupine possum rabbit raccoon ray road rocket rose sea seal shark shrew skunk skyscraper "
    "snail snake spider squirrel streetcar sunflower sweet_pepper table tank telephone television "
    "tiger tractor train trout tulip turtle wardrobe whale willow_tree wolf woman worm"
)
# Krizhevsky 2009, section 3.1; names and numbers are those of the official files.
_SUPERCLASSES = {
    "aquatic_mammals": "beaver dolphin otter seal whale",
    "fish": "aquarium_fish flatfish ray shark trout",
    "flowers": "orchid poppy rose sunflower tulip",
    "food_containers": "bottle bowl can cup plate",
    "fruit_and_vegetables": "apple mushroom orange pear sweet_pepper",
    "household_electrical_devices": "clock keyboard lamp telephone television",
    "household_furniture": "bed chair couch table wardrobe",
    "insects": "bee beetle butterfly caterpillar cockroach",
    "large_carnivores": "bear leopard lion tiger wolf",
    "large_man-made_outdoor_things": "bridge castle house road skyscraper",
    "large_natural_outdoor_scenes": "cloud forest mountain plain sea",
    "large_omnivores_and_herbivores": "camel cattle chimpanzee elephant kangaroo",
    "medium_mammals": "fox porcupine possum raccoon skunk",
    "non-insect_invertebrates": "crab lobster snail spider worm",
    "people": "baby boy girl man woman",
    "reptiles": "crocodile dinosaur lizard snake turtle",
    "small_mammals": "hamster mouse rabbit shrew squirrel",
    "trees": "maple_tree oak_tree palm_tree pine_tree willow_tree",
    "vehicles_1": "bicycle bus motorcycle pickup_truck train",
    "vehicles_2": "lawn_mower rocket streetcar tank tractor",
}
_FOUND = {name: group for group, text in _SUPERCLASSES.items() for name in text.split()}

DATASET = Dataset(
    name="cifar100",
    title="CIFAR-100",
    class_names=tuple(_CLASSES.split()),
    superclasses=tuple(_FOUND[name] for name in _CLASSES.split()),
    image_shape=(32, 32, 3),
    images={"train": 50_000, "test": 10_000},
    # Of the 50,000 training images, by `python -m mf_zoo.data.statistics`.
    mean=(129.304, 124.070, 112.434),
    std=(68.170, 65.392, 70.418),
    source="A. Krizhevsky, *Learning Multiple Layers of Features from Tiny Images*, 2009",
    sample_sha256="dd2d8195ecc3ed31d1e687194b1e6d6e8fce053cfa0fcc9e2b70cfc9a1ada8bc",
    order_feature="id",
    server="https://www.cs.toronto.edu/~kriz/",
)
