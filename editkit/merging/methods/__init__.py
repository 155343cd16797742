"""All merge methods by the names that mergekit gives them.

>>> REGISTRY["ties"].label, REGISTRY["ties"].settings["normalize"].default
('TIES', True)
"""

from editkit.merging.method import Method, Setting
from editkit.merging.methods import (
    arcee_fusion,
    breadcrumbs,
    dare,
    della,
    karcher,
    linear,
    model_stock,
    multislerp,
    nearswap,
    nuslerp,
    passthrough,
    sce,
    slerp,
    task_arithmetic,
    ties,
)

REGISTRY: dict[str, Method] = {
    "linear": linear.METHOD,
    "slerp": slerp.METHOD,
    "nuslerp": nuslerp.METHOD,
    "multislerp": multislerp.METHOD,
    "karcher": karcher.METHOD,
    "task_arithmetic": task_arithmetic.METHOD,
    "ties": ties.METHOD,
    "dare_linear": dare.DARE_LINEAR,
    "dare_ties": dare.DARE_TIES,
    "della": della.DELLA,
    "della_linear": della.DELLA_LINEAR,
    "breadcrumbs": breadcrumbs.BREADCRUMBS,
    "breadcrumbs_ties": breadcrumbs.BREADCRUMBS_TIES,
    "model_stock": model_stock.METHOD,
    "sce": sce.METHOD,
    "arcee_fusion": arcee_fusion.METHOD,
    "nearswap": nearswap.METHOD,
    "passthrough": passthrough.METHOD,
}

__all__ = ["REGISTRY", "Method", "Setting"]
