"""``vlmkit models``: what the registry knows."""

from __future__ import annotations

from dataclasses import asdict
from typing import Any

from vlmkit.cli.options import JsonOption
from vlmkit.cli.output import print_json, print_table


def models(as_json: JsonOption = False) -> None:
    """List the vision towers, language models, compressors, data sources and benchmarks that have a name here."""
    from vlmkit import registry

    if as_json:
        print_json(_facts(registry))
        return
    print_table(
        "Vision towers (--tower, --vision-tower)",
        ["name", "layers", "width", "patch", "image", "grid", "params"],
        [
            (t.name, t.layers, t.width, t.patch_size, t.image_size, _grid(t), _count(t.num_params))
            for t in registry.VISION_TOWERS.values()
        ],
        [
            "A finished pretrain-superclass run directory, any open_clip model name, or timm:NETWORK may stand "
            "wherever a tower is named."
        ],
    )
    aliases = {target: alias for alias, target in registry.llm_aliases().items()}
    print_table(
        "Language models (--llm)",
        ["name", "alias", "layers", "width", "heads", "kv heads", "vocabulary", "params", "non-embedding", "weights"],
        [
            (
                m.name,
                aliases.get(m.name, ""),
                m.num_layers,
                m.hidden_size,
                m.num_heads,
                m.num_kv_heads,
                m.vocab_size,
                _count(m.num_params),
                _count(m.num_params_non_embedding),
                m.hub_id or "fresh (embedded)",
            )
            for m in registry.LLMS.values()
        ],
        ["Any hub id or local directory of a causal language model may stand here too."],
    )
    print_table(
        "Compressors (--compressor)",
        ["name", "visual tokens", "sees the question", "several counts", "defined in"],
        [
            (c.name, c.summary, "yes" if c.conditioned else "no", "yes" if c.elastic else "no", c.source)
            for c in registry.COMPRESSORS.values()
        ],
    )
    print_table(
        "Data sources (--data)",
        ["kind", "example", "serves", ""],
        [(d.name, d.example, ", ".join(d.serves), d.summary) for d in registry.DATASETS.values()],
    )
    print_table(
        "Benchmarks (eval --tasks)",
        ["name", "of a", "metric", "families", ""],
        [(b.name, b.subject, b.metric, ", ".join(b.families), b.summary) for b in registry.BENCHMARKS.values()],
    )


def _facts(registry: Any) -> dict[str, list[dict[str, Any]]]:
    llms = [
        {**asdict(m), "num_params": m.num_params, "num_params_non_embedding": m.num_params_non_embedding}
        for m in registry.LLMS.values()
    ]
    towers = [{**asdict(t), "num_params": t.num_params} for t in registry.VISION_TOWERS.values()]
    return {
        "vision_towers": towers,
        "llms": llms,
        "compressors": [asdict(c) for c in registry.COMPRESSORS.values()],
        "datasets": [asdict(d) for d in registry.DATASETS.values()],
        "benchmarks": [asdict(b) for b in registry.BENCHMARKS.values()],
    }


def _grid(tower: Any) -> str:
    side = tower.image_size // tower.patch_size
    return f"{side} x {side}"


def _count(params: int) -> str:
    for unit, size in (("B", 1e9), ("M", 1e6), ("K", 1e3)):
        if params >= size:
            return f"{params / size:.2f}{unit}"
    return str(params)
