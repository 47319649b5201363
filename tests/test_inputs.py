"""What a record remembers of the files it read."""

from __future__ import annotations

from pathlib import Path

from llmfit.inputs import changed, hashed
from llmfit.records import ModelSpec, Plan


def test_of_a_llama_cpp_checkout_only_the_converter_counts(
    embedded: ModelSpec, tmp_path: Path
) -> None:
    """Its history and builds may change under a record; its converter may not."""
    checkout = tmp_path / "llama.cpp"
    (checkout / ".git").mkdir(parents=True)
    script = checkout / "convert_hf_to_gguf.py"
    script.write_text("print(1)")
    plan = Plan(
        backend="gguf",
        model=embedded,
        device="cpu",
        evaluation=None,
        llama_cpp_dir=str(checkout),
        cache_dir=str(tmp_path / "cache"),
    )
    recorded = hashed(plan)
    assert set(recorded.inputs) == {str(checkout)}
    (checkout / ".git" / "FETCH_HEAD").write_text("fetched")
    assert changed(recorded) == ()
    script.write_text("print(2)")
    (sentence,) = changed(recorded)
    assert sentence.startswith(f"{checkout} has content")
