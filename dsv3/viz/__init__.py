"""Figures. Each function takes plain tensors or numbers and returns a matplotlib ``Figure``; none runs a model.

matplotlib is imported in this package only. Drawing uses its object interface on the Agg canvas, so no window, no
global figure list and no display are involved, and a figure is freed like any other object.
"""

from matplotlib.figure import Figure

from dsv3.viz.atlas import (
    Measured,
    describe_against_chance,
    describe_ratios,
    draw_against_chance,
    draw_ratios,
)
from dsv3.viz.balance import describe_load_course, draw_load_course
from dsv3.viz.comparison import describe_comparison, draw_comparison
from dsv3.viz.gating import (
    Routes,
    describe_dispatch,
    describe_experts_touched,
    describe_load_bars,
    describe_routes,
    draw_dispatch,
    draw_experts_touched,
    draw_load_bars,
    draw_routes,
)
from dsv3.viz.languages import describe_language_shares, draw_language_shares
from dsv3.viz.latent import (
    describe_attention,
    describe_cache_sizes,
    describe_form_costs,
    describe_squeeze,
    draw_attention,
    draw_cache_sizes,
    draw_form_costs,
    draw_squeeze,
)
from dsv3.viz.mtp import (
    DraftStep,
    describe_acceptance,
    describe_draft_steps,
    describe_shifted_targets,
    describe_speed_up,
    draw_acceptance,
    draw_draft_steps,
    draw_shifted_targets,
    draw_speed_up,
    speed_up,
)
from dsv3.viz.quant import (
    code_exponents,
    describe_accumulation,
    describe_error_histogram,
    describe_error_maps,
    describe_number_line,
    describe_scales_and_codes,
    draw_accumulation,
    draw_error_histogram,
    draw_error_maps,
    draw_number_line,
    draw_scales_and_codes,
    relative_errors,
)
from dsv3.viz.recall import describe_recall, draw_recall
from dsv3.viz.routing import describe_expert_load, draw_expert_load
from dsv3.viz.scale import (
    describe_memory,
    describe_parameter_shares,
    describe_roofline,
    draw_memory,
    draw_parameter_shares,
    draw_roofline,
)
from dsv3.viz.theme import save
from dsv3.viz.tokens import expert_colours, token_strip, visible_token
from dsv3.viz.training import describe_training, draw_training
from dsv3.viz.way import Station, describe_token_way, draw_token_way
from dsv3.viz.yarn import (
    describe_perplexity,
    describe_ramp,
    describe_wavelengths,
    draw_perplexity,
    draw_ramp,
    draw_wavelengths,
)

__all__ = [
    "DraftStep",
    "Figure",
    "Measured",
    "Routes",
    "Station",
    "code_exponents",
    "describe_acceptance",
    "describe_accumulation",
    "describe_against_chance",
    "describe_attention",
    "describe_cache_sizes",
    "describe_comparison",
    "describe_dispatch",
    "describe_draft_steps",
    "describe_error_histogram",
    "describe_error_maps",
    "describe_expert_load",
    "describe_experts_touched",
    "describe_form_costs",
    "describe_language_shares",
    "describe_load_bars",
    "describe_load_course",
    "describe_memory",
    "describe_number_line",
    "describe_parameter_shares",
    "describe_perplexity",
    "describe_ramp",
    "describe_ratios",
    "describe_recall",
    "describe_roofline",
    "describe_routes",
    "describe_scales_and_codes",
    "describe_shifted_targets",
    "describe_speed_up",
    "describe_squeeze",
    "describe_token_way",
    "describe_training",
    "describe_wavelengths",
    "draw_acceptance",
    "draw_accumulation",
    "draw_against_chance",
    "draw_attention",
    "draw_cache_sizes",
    "draw_comparison",
    "draw_dispatch",
    "draw_draft_steps",
    "draw_error_histogram",
    "draw_error_maps",
    "draw_expert_load",
    "draw_experts_touched",
    "draw_form_costs",
    "draw_language_shares",
    "draw_load_bars",
    "draw_load_course",
    "draw_memory",
    "draw_number_line",
    "draw_parameter_shares",
    "draw_perplexity",
    "draw_ramp",
    "draw_ratios",
    "draw_recall",
    "draw_roofline",
    "draw_routes",
    "draw_scales_and_codes",
    "draw_shifted_targets",
    "draw_speed_up",
    "draw_squeeze",
    "draw_token_way",
    "draw_training",
    "draw_wavelengths",
    "expert_colours",
    "relative_errors",
    "save",
    "speed_up",
    "token_strip",
    "visible_token",
]
