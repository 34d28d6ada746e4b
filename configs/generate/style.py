"""Pictures in the styles of other pictures, with their captions (Gatys et al. 2016; Jackson et al. 2019).

Arguments: ``styles=DIR`` (pictures whose styles are taken), ``model=statistics|FILE`` (color statistics, or VGG-19's
weights by torchvision's names), ``n=N`` (children of a picture), ``strength=F``.

To change styles anew in each step, train with ``augment=style`` instead.
"""

import ml_collections

from mmjax.config_file import parse_arguments


def get_config(arg: str = "") -> ml_collections.ConfigDict:
    args = parse_arguments(arg, styles="data/styles", model="statistics", n=1, strength=0.5)
    config = ml_collections.ConfigDict()
    config.models = {"image_generator": {"name": "style", "model": args.model, "styles": args.styles}}
    config.stages = (("restyle", {"n": args.n, "strength": args.strength}),)
    return config
