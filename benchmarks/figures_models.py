"""What docs/benchmarks.md shows of training and generating; `figures.py` puts it there."""

from __future__ import annotations

from typing import Any

Record = dict[str, Any]

NOT_MEASURED = "Not measured yet.\n"
WANTED_TRAINING = 1.5
WANTED_GENERATION = 12

ARMS = {
    "guide": "the guide's section 5",
    "trl": "TRL's defaults",
    "ours": "guardlearn",
    "unsloth": "guardlearn, Unsloth",
}
INGREDIENTS = {
    "sharing": "what a batch's rows begin with computed once",
    "grouping": "rows of like length share a batch",
    "slicing": "the output head on completion columns only",
    "bf16": "bfloat16 matrix products",
    "eager": "plain attention for rows of up to 256 tokens, instead of torch's fused one",
    "no_checkpointing": "activations kept, not computed twice",
    "whole_batches": "a step's 8 rows at once, not 4 times 2",
    "threads": "a thread a core, not one",
    "environment": "the allocator's and the threads' settings of a training process",
}
GENERATION = {
    "guide": "the guide's `generate`, one prompt after another",
    "library": "the library's `generate`, 32 prompts a batch",
    "ours": "guardlearn",
}


def ratio(over: Record, under: Record) -> dict[str, float]:
    """Return how many times as long `over` takes as `under` for the same rows: in all, and the range of the turns."""
    turns = [a["seconds"] / b["seconds"] for a, b in zip(over["turns"], under["turns"], strict=True)]
    return {"ratio": _short(_seconds(over) / _seconds(under)), "low": _short(min(turns)), "high": _short(max(turns))}


def training_summary(entry: Record) -> Record:
    """Return the ratios of one run."""
    found: Record = {}
    if arms := entry.get("arms"):
        found["guide_over_ours"] = ratio(arms["guide"], arms["ours"])
        found["trl_over_ours"] = ratio(arms["trl"], arms["ours"])
        found["share_of_ceiling"] = {name: _short(_share(arms, name)) for name in arms}
        found["validation_loss"] = entry["validation_loss"]
        found["peak_mib"] = {name: arm["peak_mib"] for name, arm in arms.items()}
    if pairs := entry.get("ingredients"):
        found["without"] = {name: ratio(pair["without"], pair["ours"]) for name, pair in pairs.items()}
    return found


def _ceiling(arms: Record, name: str) -> float:
    """Return the highest that any arm of this precision measured: what else the machine had to do lowers it."""
    alike = [arm["ceiling_gflops"] for arm in arms.values() if arm["precision"] == arms[name]["precision"]]
    found: float = max(alike)
    return found


def _share(arms: Record, name: str) -> float:
    return float(arms[name]["share_of_ceiling"] * arms[name]["ceiling_gflops"] / _ceiling(arms, name))


def training(records: Record) -> str:
    """Return the table of the arms."""
    entry = records.get("training", {})
    if "arms" not in entry:
        return NOT_MEASURED
    arms, on = entry["arms"], entry["measured"]
    names = [name for name in ARMS if name in arms]
    losses = entry["validation_loss"]
    rows = {
        "completion tokens a second": [f"{arms[name]['completion_tokens_per_second']:,.0f}" for name in names],
        "all tokens a second": [f"{arms[name]['tokens_per_second']:,.0f}" for name in names],
        "of this machine's ceiling": [f"{100 * _share(arms, name):.0f} %" for name in names],
        "– which is, Gflop/s": [f"{_ceiling(arms, name):,} ({arms[name]['precision']})" for name in names],
        "most memory while training, MiB": [f"{arms[name]['peak_mib']:,.0f}" for name in names],
        f"validation loss after {arms['ours']['rows']} rows": [f"{losses[name]:.3f}" for name in names],
    }
    lines = [f"| | {' | '.join(ARMS[name] for name in names)} |", "|---" * (len(names) + 1) + "|"]
    lines += [f"| {words} | {' | '.join(cells)} |" for words, cells in rows.items()]
    of_guide, of_trl = ratio(arms["guide"], arms["ours"]), ratio(arms["trl"], arms["ours"])
    met = of_guide["ratio"] >= WANTED_TRAINING and losses["ours"] <= losses["guide"]
    lines += [
        "",
        f"Wanted: at least {WANTED_TRAINING} times the guide's completion tokens a second, at equal or better "
        f"validation loss. Found: {_range(of_guide)} times{'' if met else ' (**missed**)'}, and {_range(of_trl)} times "
        f"TRL's. The base's validation loss is {losses['base']:.3f} ({entry['validation_rows']} rows).",
        "",
        _before(arms["ours"]),
        "",
        f"{_machine(on)}.",
    ]
    return "\n".join(lines) + "\n"


def _before(arm: Record) -> str:
    spent = arm["before"]
    return (
        f"Before its first step the training process imported its libraries for {spent['imports']:.1f} s, loaded the "
        f"tokenizer in {spent['tokenizer']:.1f} s and the base model in {spent['base']:.1f} s, and turned "
        f"{arm['rows']} rows into tokens in {spent['tokenise']:.2f} s."
    )


def ingredients(records: Record) -> str:
    """Return the table of what each ingredient gains."""
    pairs = records.get("training", {}).get("ingredients")
    if not pairs:
        return NOT_MEASURED
    lines = ["| ingredient | a step without it takes | memory without it, MiB |", "|---|---|---|"]
    for name, words in INGREDIENTS.items():
        if name in pairs:
            without, ours = pairs[name]["without"], pairs[name]["ours"]
            grown = f"{without['peak_mib'] - ours['peak_mib']:+,.0f}"
            taken = f"{_range(ratio(without, ours))} times as long"
            if name == "bf16" and ours["precision"] != "bf16":
                taken, grown = "not measured: this processor has none", "–"
            lines.append(f"| {words} | {taken} | {grown} |")
    return "\n".join([*lines, "", f"{_machine(records['training']['ingredients_measured'])}."]) + "\n"


def generation_summary(entry: Record) -> Record:
    """Return the ratios of one run."""
    sides = entry["sides"]
    return {
        "guide_over_ours_a_prompt": _a_prompt(sides, "guide"),
        "library_over_ours_a_prompt": _a_prompt(sides, "library"),
        "tokens_per_second": {name: _tokens(side) for name, side in sides.items()},
        "verdicts": entry["verdicts"],
        "greedy": entry["greedy"],
    }


def generation(records: Record) -> str:
    """Return the table of the three ways to generate."""
    entry = records.get("generation", {})
    if "sides" not in entry:
        return NOT_MEASURED
    sides, verdicts, greedy = entry["sides"], entry["verdicts"], entry["greedy"]
    lines = [
        "| | prompts | tokens a second | seconds a prompt | accepted |",
        "|---|---|---|---|---|",
    ]
    for name, words in GENERATION.items():
        side = sides[name]
        rate = "–" if name not in verdicts else f"{verdicts[name]['accepted']} of {verdicts[name]['prompts']}"
        each = _seconds(side) / side["prompts"]
        lines.append(f"| {words} | {side['prompts']} | {_tokens(side):,.0f} | {each:.2f} | {rate} |")
    tokens = _short(_tokens(sides["ours"]) / _tokens(sides["guide"]))
    seconds = _a_prompt(sides, "guide")
    met = tokens >= WANTED_GENERATION
    low, high = verdicts["difference"]["interval"]
    lines += [
        "",
        f"Wanted: at least {WANTED_GENERATION} times the guide's tokens a second. Found: {tokens} times"
        f"{'' if met else ' (**missed**)'}; {seconds} times in seconds a prompt, since a row ends with its code. "
        f"Accepted more often than the library's answers by {_points(verdicts['difference']['estimate'])} points "
        f"[{_points(low)}, {_points(high)}] (by family). Greedy answers in 32 bit that equal the library's one by one: "
        f"{greedy['equal']} of {greedy['prompts']}.",
        "",
        f"{_machine(entry['measured'])}.",
    ]
    return "\n".join(lines) + "\n"


def _a_prompt(sides: Record, name: str) -> float:
    times = {each: _seconds(sides[each]) / sides[each]["prompts"] for each in (name, "ours")}
    return _short(times[name] / times["ours"])


def _tokens(side: Record) -> float:
    return float(side["new_tokens"] / _seconds(side))


def _seconds(side: Record) -> float:
    return float(sum(turn["seconds"] for turn in side["turns"]))


def _points(share: float) -> str:
    return f"{100 * share:.1f}"


def _range(found: dict[str, float]) -> str:
    return f"{found['ratio']} [{found['low']}–{found['high']}]"


def _machine(on: Record) -> str:
    versions = ", ".join(f"{name} {version}" for name, version in on["versions"].items())
    loads = " to ".join(str(load) for load in on["load_average"])
    return (
        f"{on['date']}, {on['model']}, {on['cores']} {on['device']} cores, {on['threads']} threads, "
        f"{on['memory_gib']} GiB; {versions}; load average {loads}"
    )


def _short(value: float) -> float:
    return float(f"{value:.3g}")
