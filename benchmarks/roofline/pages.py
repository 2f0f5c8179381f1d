"""The tables of docs/scale.md and of this folder's README.md, from the saved numbers."""

from typing import Any

SWITCHES = {
    "by_document": "`attention: auto` over packed rows: by document, without a dense mask",
    "bfloat16_parameters": "`strategy: fsdp` with `precision: bf16-mixed`, also on one device: parameters in bfloat16",
    "own_units": "token table, head and norms gathered once (`fsdp`, always)",
    "fused_update": "AdamW in fused kernels over a rank's shards (always)",
    "head_once": "gradients of the loss in its forward pass (always)",
    "keep_products": "`checkpoint_keep: products`, where memory does not allow the next",
    "keep_activations": "`checkpoint_activations: []`, where memory allows it",
    "compiled": "`compile: [language_model]`",
    "cudnn": "`attention: cudnn`, for rows that are not packed",
}
"""{switch: its row in docs/scale.md}."""
COLUMNS = {
    "finetune, one GPU, 4 rows": "3b/finetune, one GPU, 4 rows",
    "pretrain, one GPU, 4 rows": "3b/pretrain, one GPU, 4 rows",
    "finetune, one GPU, 4 packed rows of 2048": "4 packed rows of 2048",
    "finetune, one GPU, 1 packed rows of 8192": "1 packed row of 8192",
    "3b finetune, 8 machines of 8, 4 rows": "3b/finetune, 8 machines of 8, 4 rows",
    "florence_vl/8b/finetune": "8b/finetune as written",
}
"""{case: the head of its column in docs/scale.md}."""

LIMITS = {
    "matrix products": ("matmul",),
    "attention": ("attention", "masked attention"),
    "element-wise": ("elementwise",),
    "copies and look-ups": ("copies", "gather"),
}
"""{column in the table of limits: its kinds of operations}."""


def switches(saved: dict[str, Any]) -> list[str]:
    """Returns the lines of the table of switches: the share of the first step time that each saves, by case."""
    cases = {case["case"]: case for case in saved["cases"]}
    columns = [cases[name] for name in COLUMNS]
    lines = [f"| `trainer.` | {' | '.join(COLUMNS.values())} |", "|---|" + "--:|" * len(columns)]
    lines.append(_line("before: a step, MFU", [_step(case["before"]) for case in columns]))
    for switch, title in SWITCHES.items():
        shares = [{change["change"]: change["share"] for change in case["changes"]} for case in columns]
        lines.append(_line(title, [f"{100 * share[switch]:.1f} %" if switch in share else "" for share in shares]))
    lines.append(_line("after all: a step, MFU", [_step(case["after"]) for case in columns]))
    return lines


def presets(saved: dict[str, Any]) -> list[str]:
    """Returns the lines of the table of all cases."""
    lines = [
        "| case | rows x accumulated x ranks | s a step before | after | tokens/s a GPU before | after | MFU before "
        "| after |",
        "|---|---|" + "--:|" * 6,
    ]
    for case in saved["cases"]:
        steps = case["before"], case["after"]
        cells = [f"{case['rows']} x {case['accumulate']} x {case['ranks']}"]
        cells += [f"{step['step_seconds']:.3g}" for step in steps]
        cells += [f"{step['tokens_per_second']:,.0f}" for step in steps]
        cells += ["" if step["mfu"] is None else f"{step['mfu']:.2f}" for step in steps]
        lines.append(_line(case["case"], cells))
    return lines


def limits(saved: dict[str, Any]) -> list[str]:
    """Returns the lines of the table of what the time of a step is spent on after all changes, by case, in percent."""
    lines = [
        f"| case | {' | '.join(LIMITS)} | other devices | update |",
        "|---|" + "--:|" * (len(LIMITS) + 2),
    ]
    for case in saved["cases"]:
        step = case["after"]
        computed = 100 * step["compute_seconds"] / step["step_seconds"]
        shares = [computed * sum(step["kinds"].get(kind, 0.0) for kind in kinds) for kinds in LIMITS.values()]
        shares += [100 * step[f"{what}_seconds"] / step["step_seconds"] for what in ("waiting", "update")]
        lines.append(_line(case["case"], [f"{share:.0f}" for share in shares]))
    return lines


def _step(step: dict[str, Any]) -> str:
    mfu = "" if step["mfu"] is None else f", {step['mfu']:.2f}"
    return f"{1e3 * step['step_seconds']:,.0f} ms{mfu}"


def _line(title: str, cells: list[str]) -> str:
    return f"| {title} | {' | '.join(cells)} |"
