"""What README.md and pages of docs show of docs/evidence: `python prove/figures.py` rewrites it; tests compare."""

import json
from pathlib import Path

from guardlearn.prompts import fence

ROOT = Path(__file__).parents[1]
EVIDENCE = ROOT / "docs" / "evidence"


def load(name):
    return json.loads((EVIDENCE / f"{name}.json").read_text(encoding="utf-8"))


def percent(value):
    return f"{100 * value:.1f} %"


def program():
    """Return what the README's program printed."""
    return fence(load("readme")["result"]["stdout"].rstrip()) + "\n"


def figures():
    """Return the table of the demo's two runs and the time it takes."""
    runs = {"as committed": load("demo"), "families swapped": load("demo_swapped")}
    rows = ["| held-out | " + " | ".join(runs) + " |", "|---" * (len(runs) + 1) + "|"]
    evidence = [run["result"]["evidence"] for run in runs.values()]
    lines = {
        "specifications / families": [f"{e['specs']} / {e['groups']}" for e in evidence],
        "first attempts that pass, base": [interval(e["base"]["first_attempt"]) for e in evidence],
        "first attempts that pass, adapter": [interval(e["candidate"]["first_attempt"]) for e in evidence],
        "difference, points": [points(e["difference"]) for e in evidence],
        "expected attempts (R_max 4), base → adapter": [
            f"{e['base']['expected_attempts']:.2f} → {e['candidate']['expected_attempts']:.2f}" for e in evidence
        ],
        "solved within 4, base → adapter": [
            f"{percent(e['base']['solved_within_r_max'])} → {percent(e['candidate']['solved_within_r_max'])}"
            for e in evidence
        ],
    }
    rows += [f"| {name} | " + " | ".join(cells) + " |" for name, cells in lines.items()]
    clean = load("clean_demo")
    times = sorted(run["make_demo_seconds"] for run in clean["result"]["runs"])
    installs = sorted(run["install_seconds"] for run in clean["result"]["runs"])
    minutes = clean["result"]["median_seconds"] / 60
    rows += [
        "",
        f"95 % intervals by family. `make demo` on a clean clone with an empty cache took {minutes:.1f} minutes on "
        f"{clean['machine']['cores']} cores (median of {len(times)}: {', '.join(f'{t:.0f}' for t in times)} s), "
        f"of which installing {installs[len(installs) // 2]:.0f} s; downloading alone takes "
        f"{clean['result']['download_seconds']:.0f} s here.",
    ]
    return "\n".join(rows) + "\n"


def interval(rate):
    return f"{percent(rate['rate'])} [{100 * rate['low']:.1f}, {100 * rate['high']:.1f}]"


def points(difference):
    return f"{100 * difference['rate']:+.1f} [{100 * difference['low']:.1f}, {100 * difference['high']:.1f}]"


def tutorial():
    """Return how long the tutorial's first collection took."""
    proof = load("tutorial")
    runs = sorted(run["first_collection_seconds"] for run in proof["result"]["runs"])
    installs = sorted(run["seconds"]["install"] for run in proof["result"]["runs"])
    return (
        f"On a clean clone with an empty cache and {proof['machine']['cores']} cores, the first collection was there "
        f"{proof['result']['median_seconds'] / 60:.1f} minutes after the first line of the install block (median of "
        f"{len(runs)}: {', '.join(f'{each:.0f}' for each in runs)} s), of which installing "
        f"{installs[len(installs) // 2]:.0f} s.\n"
    )


def hostile():
    """Return what became of the hostile set."""
    found = load("hostile")["result"]
    attacks, goods = found["attacks_by_status"], found["good_by_status"]
    return (
        f"{found['attacks']} hostile artifacts through two guards, started by root and by a user: "
        f"{attacks['rejected']} of {sum(attacks.values())} verdicts rejected them, {goods['accepted']} of "
        f"{sum(goods.values())} good artifacts between them were accepted; on the host {len(found['changes'])} things "
        f"changed, and {len(found['left_running'])} processes were left.\n"
    )


def collecting():
    """Return what kills and a lost node did to collections."""
    kills, cluster = load("collect_kills")["result"], load("ray_cluster")["result"]
    over = max(each["tokens over a budget, at most"] for each in kills.values())
    killed = " and ".join(f"{each['killed']} on {name}" for name, each in kills.items())
    replay, model = cluster["replay"], cluster["model"]
    return (
        f"Killed with SIGKILL at random moments ({killed}), collections ended in the attempts of one that nobody "
        f"killed, none twice; a budget of tokens was exceeded by {over} at most. On a Ray cluster of {replay['nodes']} "
        f"nodes, one of them removed after {replay['attempts when a node went']} of {replay['attempts']} attempts, the "
        f"items were those of the local engine; with the small model {100 * model['on the cluster']:.1f} % of first "
        f"attempts passed there and {100 * model['here']:.1f} % here.\n"
    )


def server():
    """Return what a collection through a real server and through faults came to."""
    found = load("server")["result"]
    direct, faults = found["direct"], found["through_faults"]
    lost = faults["unfinished_chains"] + direct["unfinished_chains"]
    return (
        f"With {found['server']}: {direct['attempts']} attempts directly, and {faults['attempts']} through a proxy "
        f"that injected {len(faults['faults'])} kinds of fault ({sum(faults['faults'].values())} in all), the "
        f"collection killed once in the middle; {lost} chains unfinished, {faults['twice']} attempts stored twice, the "
        f"key found in {faults['key_found']} files.\n"
    )


def kills():
    """Return what kills of rounds left."""
    seen = load("round_kills")["result"]
    killed = ", ".join(f"{seen[name]['killed']} ({name})" for name in ("SQLite", "PostgreSQL", "real trainer"))
    of = sum(seen[name]["rounds"] for name in seen)
    equal = sum(seen[name]["rounds with equal weights"] for name in seen)
    return (
        f"kill -9 at {killed} seeded moments of `guardlearn loop`: each of the {of} rounds came to the one result of a "
        f"round that nobody killed, its job folder byte-identical, {equal} of them with equal weights.\n"
    )


def gpu():
    """Return what `benchmarks/gpu.py` left: training on a CUDA device, backend by backend."""
    record = json.loads((ROOT / "docs" / "gpu.json").read_text(encoding="utf-8"))
    device, speeds, trained = record["device"], record.get("speeds", {}), record.get("trained", {})
    arms = ("trl 16 bit", "unsloth 16 bit", "unsloth 4 bit")
    ceiling = device["ceiling_tflops"]

    def cells(found, show):
        return [show(found[arm]) if arm in found else "not measured" for arm in arms]

    def reached(arm):
        return arm["share_of_ceiling"] * arm["tokens_per_second_of_a_step"] / arm["tokens_per_second"]

    def losses(arm):
        return f"{arm['validation_loss']['base']:.3f} → {arm['validation_loss']['trained']:.3f}"

    lines = {
        "the demo's traces: validation loss, base → trained": cells(trained, losses),
        "the demo's held-out specifications: first attempts that pass": cells(
            record.get("evaluated", {}), lambda arm: percent(arm["candidate"])
        ),
        "1.7 billion parameters: tokens a second, median step": cells(
            speeds, lambda arm: f"{arm['tokens_per_second_of_a_step']:,}"
        ),
        "… share of the ceiling": cells(speeds, lambda arm: f"{100 * reached(arm):.0f} %"),
        "… memory of the device": cells(speeds, lambda arm: f"{arm['device_memory_mib'] / 1024:.1f} GiB"),
        "… start, compiling and 20 steps, seconds": cells(speeds, lambda arm: f"{arm['seconds']:.0f}"),
    }
    demo = record["demo"]
    rows = ["| | " + " | ".join(arms) + " |", "|---" * (len(arms) + 1) + "|"]
    rows += [f"| {name} | " + " | ".join(found) + " |" for name, found in lines.items()]
    named = ", ".join(f"{name} {version}" for name, version in device["versions"].items())
    rows += [
        "",
        f"{record['date']}: one {device['name']} (driver, memory: {device['driver, memory']}), CUDA {device['cuda']}, "
        f"{named}. Its matrix product in bfloat16 reached {ceiling:.0f} TFLOP/s, the ceiling above. The whole of "
        f"`guardlearn demo`, training by {demo['training']['backend']}, took {demo['wall']:.0f} s; first attempts that "
        "pass went from "
        f"{percent(demo['base'])} to {percent(demo['candidate'])} ({points(demo['difference'])} points) on "
        f"{demo['specs']} specifications.",
        "",
        "A step of the large model is 16 rows of 600 to 1100 tokens. Not measured: "
        + ", ".join(name for name in ("sft+kto", "sft+dpo", "memory", "generation") if name not in record | trained)
        + ".",
    ]
    return "\n".join(rows) + "\n"


def rounds():
    """Return what three rounds of the demo came to, and what became of candidates that must not go live."""
    proof = load("rounds")["result"]
    rows = ["| round | decision | gain, points | smallest gain it could show | why |", "|---|---|---|---|---|"]
    for each in proof["rounds"]:
        gain = points({"rate": each["gain"], "low": each["gain_low"], "high": each["gain_high"]})
        found = "–" if each["detectable"] is None else f"{100 * each['detectable']:.1f}"
        rows.append(f"| {each['round']} | {each['state']} | {gain} | {found} | {each['reason']} |")
    shuffled, nothing, replayed = proof["shuffled"], proof["zero_step"], proof["replayed_harmful"]
    shares = ", ".join("–" if share is None else f"{share:.0%}" for share in proof["first_attempts_in_collection"])
    rows += [
        "",
        f"First attempts that passed at once in each round's own collection: {shares}. A candidate trained on "
        f"shuffled completions, against the live adapter: {shuffled['state']}, {100 * shuffled['gain']:+.1f} points. "
        f"One trained with a learning rate that rounds to nothing: {nothing['state']}, nothing sampled. Harmful "
        f"candidates with replayed outcomes: {replayed['refused']} of {sum(replayed.values())} refused.",
    ]
    return "\n".join(rows) + "\n"


def exports():
    """Return how far each export is from base + adapter and from the bare base, and what a server said."""
    proof = load("export")["result"]
    rows = [
        "| | prompts | same greedy continuation | largest difference of a logit | … from the bare base |",
        "|---" * 5 + "|",
    ]
    for form, found in proof["exports"].items():
        rows.append(
            f"| `--to {form}` | {found['prompts']} | {found['identical_continuations']} | "
            f"{found['adapter_difference']:.2g} | {found['base_difference']:.1f} |"
        )
    served = ", ".join(
        f"{each['as_base_and_adapter']} of {each['asked']} answers of the {form} form"
        for form, each in proof["served"].items()
    )
    rows += [
        "",
        f"`transformers serve`, asked by name in float32: {served} are those of base + adapter, none is the bare "
        "base's.",
    ]
    return "\n".join(rows) + "\n"


def ablation():
    """Return what the demo's ablations came to: each axis's sentences and its arms."""
    import msgspec

    from guardlearn.report import ablation as told
    from guardlearn.report.markup import grid, plain

    proof, parts = load("ablation"), []
    for found in proof["result"]["ablations"].values():
        each = msgspec.convert(found, told.Ablation)
        columns, rows = told.arm_rows(each)
        parts.append(f"**{plain(told.headline(each))}**, on {each.specs} specifications in {each.groups} families:")
        others = each.differences
        said = [told.sentence(versus, each.reference, each.outcome, len(others)) for versus in others]
        parts.append("\n".join(f"- {plain(sentence)}" for sentence in said))
        parts.append(grid([plain(name) for name in columns], [[plain(cell) for cell in row] for row in rows]))
    uneven = max(each or 0.0 for each in proof["result"]["largest_deviation_of_wall_time"].values())
    parts.append(
        f"{proof['date']}, {proof['machine']['cores']} cores; no training lay more than {100 * uneven:.0f} % from the "
        "median wall time of its ablation."
    )
    return "\n\n".join(parts) + "\n"


def trainings():
    """Return what kills left of trainings."""
    found = load("training_kills")["result"]
    killed = ", ".join(f"{each['killed']} ({name})" for name, each in found.items())
    same = sum(each["same bytes"] for each in found.values())
    return (
        f"kill -9 at seeded moments of a training, {killed}: in {same} of these {len(found)} kinds every training "
        "ended in the bytes of the one that nobody killed.\n"
    )


PAGES = {
    "README.md": {"program": program, "figures": figures},
    "docs/ablations.md": {"ablation": ablation},
    "docs/gpu.md": {"gpu": gpu},
    "docs/collecting.md": {"collecting": collecting},
    "docs/rounds.md": {"kills": kills, "rounds": rounds},
    "docs/sandbox.md": {"hostile": hostile},
    "docs/servers.md": {"server": server},
    "docs/serving.md": {"exports": exports},
    "docs/training.md": {"trainings": trainings},
    "docs/tutorial.md": {"tutorial": tutorial},
}
"""Blocks by page; each stands between two comments of its name."""


def comments(name):
    return f"<!-- {name}: begin -->\n", f"<!-- {name}: end -->\n"


def main():
    for name, blocks in PAGES.items():
        page = ROOT / name
        text = page.read_text(encoding="utf-8")
        for block, render in blocks.items():
            begin, end = comments(block)
            before, rest = text.split(begin)
            text = before + begin + render() + end + rest.split(end)[1]
        page.write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main()
