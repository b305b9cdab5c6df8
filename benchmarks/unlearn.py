"""The unlearning bench as README and RESULTS.md quote it: users, concepts and a stream, as Markdown tables.

    python benchmarks/unlearn.py --ml-100k DIR --scientific DIR [--home workspaces/bench] [--out DIR] [--only users,...]

Runs `genrec bench unlearn` for each table in a workspace of its own (made when it is not there, everything finished is
reused) and prints the table. With --print it only reads the JSON files in --out.
"""

import argparse
import json
import os
import subprocess
import sys
from pathlib import Path

BASELINES = (
    "finetune,gradient_ascent,graddiff,npo,simnpo,scif,hard_prune,"
    "ucan_without_contrast,ucan_without_utility,ucan_plus_attenuate"
)
TABLES = {
    "users": ("ml-100k", ["--scenario", "users", "--methods", f"ucan_plus,ucan,{BASELINES},output_filter"]),
    "concepts": ("ml-100k", ["--scenario", "concept", "--methods", "tracer"]),
    "concepts-scientific": ("scientific", ["--scenario", "concept", "--methods", "tracer"]),
    "concept-baselines": (
        "ml-100k",
        [
            "--scenario",
            "concept",
            "--concepts",
            "War",
            "--methods",
            f"tracer,tracer_repair,ucan,{BASELINES},output_filter",
        ],
    ),
    "stream": ("ml-100k", ["--scenario", "stream", "--methods", "ucan_plus,tracer"]),
    "stream-scientific": ("scientific", ["--scenario", "stream", "--methods", "ucan_plus,tracer"]),
}
SEEDS = {"concept-baselines": 1, "stream": 1, "stream-scientific": 1}


def run(name: str, options: argparse.Namespace) -> None:
    source, arguments = TABLES[name]
    directory = {"ml-100k": options.ml_100k, "scientific": options.scientific}[source]
    environment = {**os.environ, "GENREC_HOME": str(options.home.resolve())}
    seeds = str(SEEDS.get(name, 3))
    command = [sys.executable, "-m", "genrec.cli", "bench", "unlearn", *arguments, "--seeds", seeds]
    file = (options.out / f"{name}.json").resolve()
    subprocess.run([*command, "--data", str(directory.resolve()), "--json", str(file)], env=environment, check=True)


def figure(m: dict | None, digits: int = 3) -> str:
    if m is None or m["value"] is None:
        return "-"
    if m["low"] is None:
        return f"{m['value']:.{digits}f}"
    return f"{m['value']:.{digits}f} [{m['low']:.{digits}f}, {m['high']:.{digits}f}]"


def counts(verdicts: dict[str, int]) -> str:
    return ", ".join(f"{name} {count}" for name, count in verdicts.items())


def markdown(*columns: str) -> list[str]:
    """The first two lines of a table."""
    return [f"| {' | '.join(columns)} |", f"|{' --- |' * len(columns)}"]


def cost(row: dict) -> str:
    """Seconds over seeds, mean [min, max], and their share of retraining's."""
    seconds, share = row["seconds"], row["share_of_retraining"]
    return f"{seconds['mean']:.1f} [{seconds['min']:.1f}, {seconds['max']:.1f}] ({100 * share['mean']:.1f} %)"


def memory(row: dict) -> str:
    """Peak MiB over seeds, mean [min, max]: above the start, and on the GPU where there is one."""
    found = [row[key] for key in ("peak_above_start_mib", "peak_gpu_mib") if row[key]]
    return " / ".join(f"{peak['mean']:.0f} [{peak['min']:.0f}, {peak['max']:.0f}]" for peak in found) or "-"


def users(result: dict) -> str:
    lines = markdown(
        "method", "NLL gap over retrained", "AUC (loss)", "TPR@1%FPR", "test NLL increase", "NDCG@10 ratio",
        "Trade-off@10", "seconds (share)", "peak MiB above start / on the GPU", "verdict",
    )  # fmt: skip
    for row in result["table"]:
        f = row.get("figures")
        if not f:
            lines.append(f"| `{row['method']}` | refused: {row['reason']} | | | | | | | | |")
            continue
        lines.append(
            f"| `{row['method']}` | {figure(f['user NLL gap over retrained'])} | {figure(f['membership loss AUC'])} "
            f"| {figure(f['membership loss TPR@1%FPR'])} | {figure(f['test NLL increase'])} "
            f"| {figure(f['ndcg@10 ratio'])} | {figure(f['trade-off@10'], 1)} "
            f"| {cost(row)} | {memory(row)} | {counts(row['verdicts'])} |"
        )
    return "\n".join(lines)


def concepts(result: dict) -> str:
    lines = markdown(
        "concept", "method", "SH@10", "of likers", "of the rest", "target mass", "test NLL increase", "NDCG@10 ratio",
        "sharing 1 SID token", "collateral (2+)", "relearned over retrained", "the same on its SIDs",
        "seconds (share)", "verdict", "gates not passed",
    )  # fmt: skip
    for row in result["table"]:
        f = row.get("figures")
        if not f:
            lines.append(f"| {row['label']} | `{row['method']}` | refused: {row['reason']} {'| ' * 13}")
            continue
        missed = [f"{gate} {counts(v)}" for gate, v in row["gates"].items() if set(v) != {"PASS"}]
        lines.append(
            f"| {row['label']} | `{row['method']}` | {figure(f['sh@10 ' + row['label']], 4)} "
            f"| {figure(f['likers sh@10'], 4)} | {figure(f['others sh@10'], 4)} "
            f"| {figure(f['target mass'], 4)} | {figure(f['test NLL increase'])} | {figure(f['ndcg@10 ratio'])} "
            f"| {figure(f['test NLL increase, sharing 1 SID token'])} "
            f"| {figure(f['test NLL increase, sharing 2+ SID tokens'])} "
            f"| {figure(f.get('relearning gains over retrained'))} "
            f"| {figure(f.get('relearning gains over retrained, same SIDs'))} "
            f"| {cost(row)} | {counts(row['verdicts'])} "
            f"| {'; '.join(missed)} |"
        )
    return "\n".join(lines)


def stream(result: dict) -> str:
    parts = []
    for run_ in result["streams"]:
        lines = markdown(
            "night", "users", "concept", "seconds", "drift (NDCG@10 lost)", "test NLL increase", "utility gate"
        )
        lines += [
            f"| {n['night']} | {n['users']} | {n['concept'] or ''} | {n['seconds']:.1f} | {figure(n['drift'])} "
            f"| {figure(n['test NLL increase'])} | {n['utility']} |"
            for n in run_["nights"]
        ]
        r = run_["retrained"]
        lines.append(
            f"| retrained | all | all | {run_['retrain_s']:.1f} | {figure(r['drift'])} "
            f"| {figure(r['test NLL increase'])} | {r['utility']} |"
        )
        lines += [
            "",
            f"Nights with fewer than the {run_['min_users']} people that a verdict needs: "
            f"{run_['nights_with_too_few_people']} of {len(run_['nights'])}.",
            "",
            *markdown(
                "request of night", "about", "people", "verdict at the end", "gate", "figure at the end", "its verdict"
            ),
        ]
        lines += [
            f"| {row['night'] or 'all'} | {row['label']} | {row['people'] or ''} | {row['verdict']} "
            f"| {gate['name']} | {figure(gate, 4)} | {gate['verdict']} |"
            for row in run_["requests_at_the_end"] for gate in row["gates"]
        ]  # fmt: skip
        lines += ["", json.dumps(run_["order"])]
        parts.append("\n".join(lines))
    return "\n\n".join(parts)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--ml-100k", type=Path, help="folder with MovieLens 100k, or a workspace that has it")
    parser.add_argument("--scientific", type=Path, help="folder with Amazon Scientific, or a workspace that has it")
    parser.add_argument("--home", type=Path, default=Path("workspaces/bench"))
    parser.add_argument("--out", type=Path, default=Path("workspaces/bench/results"))
    parser.add_argument("--only", default=",".join(TABLES))
    parser.add_argument("--print", action="store_true", dest="only_print")
    options = parser.parse_args()
    if not options.only_print and not (options.home / "params.yaml").exists():
        options.home.parent.mkdir(parents=True, exist_ok=True)
        subprocess.run([sys.executable, "-m", "genrec.cli", "init", str(options.home)], check=True)
    for name in options.only.split(","):
        if not options.only_print:
            run(name, options)
        result = json.loads((options.out / f"{name}.json").read_text())
        render = {"users": users, "stream": stream, "stream-scientific": stream}.get(name, concepts)
        print(
            f"\n## {name}: commit {result['code_version']}, {result['date']}, {result['machine']}\n\n{render(result)}"
        )


if __name__ == "__main__":
    main()
