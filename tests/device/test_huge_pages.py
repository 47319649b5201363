"""Memory put into huge pages where it lies: its values, its aliases, and what the kernel tells."""

from __future__ import annotations

import mmap
from pathlib import Path

import pytest

from llmfit.device import huge_pages
from llmfit.device.huge_pages import (
    ask_for_huge_pages,
    bytes_in_huge_pages,
    huge_page_bytes,
    move_to_huge_pages,
)
from llmfit.device.memory import resident_bytes

torch = pytest.importorskip("torch")

MIB = 1 << 20
needs_huge_pages = pytest.mark.skipif(
    huge_page_bytes() is None, reason="this system gives no huge pages to who asks for them"
)


def span(tensor: torch.Tensor) -> tuple[int, int]:
    """Where a tensor lies."""
    return tensor.data_ptr(), tensor.nbytes


def fresh(nbytes: int) -> torch.Tensor:
    """Bytes of a mapping of their own: malloc may hand out memory of its heap instead."""
    flags = mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS
    return torch.frombuffer(mmap.mmap(-1, nbytes, flags=flags), dtype=torch.uint8)


@needs_huge_pages
def test_a_mapped_file_keeps_its_values_and_every_alias(tmp_path: Path) -> None:
    """As a checkpoint's tensors are mapped; what was a view of one still is, and can be written."""
    file = tmp_path / "weights"
    values = torch.arange(8 * MIB, dtype=torch.int32)
    file.write_bytes(values.numpy().tobytes())
    mapped = torch.from_file(str(file), shared=False, size=8 * MIB, dtype=torch.int32)
    view = mapped[5 * MIB :]
    before = resident_bytes()
    moved = move_to_huge_pages([span(mapped)])
    size = huge_page_bytes() or 0
    assert mapped.nbytes - 2 * size < moved <= mapped.nbytes and moved % size == 0
    assert bytes_in_huge_pages([span(mapped)]) == moved
    assert torch.equal(mapped, values) and torch.equal(view, values[5 * MIB :])
    view[0] = -1
    assert int(mapped[5 * MIB]) == -1
    # Neither the file's pages nor the copy's place are held beside what was moved.
    assert resident_bytes() - before < mapped.nbytes + 8 * MIB
    assert file.read_bytes() == values.numpy().tobytes()


@needs_huge_pages
def test_what_was_moved_keeps_its_values_and_is_freed() -> None:
    """Each tensor has its own values; once dropped, it gives its memory back."""
    tensors = [fresh(48 * MIB).fill_(index) for index in range(3)]
    tensors.append(torch.full((48 * MIB,), 3, dtype=torch.uint8))  # wherever malloc puts it
    assert move_to_huge_pages([span(each) for each in tensors]) > 180 * MIB
    for index, tensor in enumerate(tensors):
        assert bool((tensor == index).all())
    held = resident_bytes()
    del tensors, tensor
    assert held - resident_bytes() > 140 * MIB


@needs_huge_pages
def test_fresh_memory_is_given_huge_pages() -> None:
    """What was asked for before it was touched lies in them."""
    values = fresh(64 * MIB)
    ask_for_huge_pages(*span(values))
    values.fill_(7)
    assert (bytes_in_huge_pages([span(values)]) or 0) >= 60 * MIB


@needs_huge_pages
def test_neighbours_in_one_mapping_do_not_count() -> None:
    """The system tells of both together."""
    values = fresh(64 * MIB)
    ask_for_huge_pages(*span(values))
    values.fill_(7)
    assert 28 * MIB <= (bytes_in_huge_pages([span(values[: 32 * MIB])]) or 0) <= 32 * MIB


@needs_huge_pages
def test_little_free_memory_leaves_pages_where_they_are(monkeypatch: pytest.MonkeyPatch) -> None:
    """A file's pages can be dropped under pressure, copies cannot."""
    values = torch.ones(16 * MIB, dtype=torch.uint8)
    monkeypatch.setattr(huge_pages, "_SPARE_SHARE", 1.0)
    assert move_to_huge_pages([span(values)]) == 0
    assert bool((values == 1).all())


def test_a_range_below_a_huge_page_is_left_alone() -> None:
    """There is no whole huge page inside."""
    values = torch.ones(MIB, dtype=torch.uint8)
    assert move_to_huge_pages([span(values)]) == 0


@pytest.mark.parametrize(
    ("enabled", "expected"),
    [("always [madvise] never", 2 * MIB), ("[always] madvise never", 2 * MIB),
     ("always madvise [never]", None)],
)  # fmt: skip
def test_the_systems_settings_are_read(tmp_path: Path, enabled: str, expected: int | None) -> None:
    """None where huge pages are switched off, or the system has none."""
    (tmp_path / "enabled").write_text(enabled + "\n")
    assert huge_page_bytes(tmp_path) is None  # no size is told
    (tmp_path / "hpage_pmd_size").write_text(f"{2 * MIB}\n")
    assert huge_page_bytes(tmp_path) == expected
    assert huge_page_bytes(tmp_path / "missing") is None


def test_ranges_that_touch_are_one() -> None:
    """In order of their addresses; a byte between them may be another's."""
    assert huge_pages._joined([(40, 5), (10, 10), (20, 4), (12, 2), (25, 1)]) == [
        (10, 24), (25, 26), (40, 45)
    ]  # fmt: skip
