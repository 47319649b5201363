"""The table of GPUs and chips, against the closed forms behind its vendors' figures.

What each part was compared with beside them, its ``source`` says.
"""

from __future__ import annotations

import math

import pytest

from llmfit.errors import UsageError
from llmfit.planning.catalogue import find
from llmfit.planning.speed.hardware import assumed_gpu, find_gpu, match_gpu, note_on, parts
from llmfit.planning.speed.published import RATES, published
from llmfit.records import Hardware
from llmfit.units import GB, GIB

BUS = {
    # Width of the memory bus in bits, and transfers per second and pin in 10⁹, as commonly stated.
    "RTX 5090": (512, 28),
    "RTX 5080": (256, 30),
    "RTX 5070 Ti": (256, 28),
    "RTX 5070": (192, 28),
    "RTX 5060": (128, 28),
    "RTX 5050": (128, 20),
    "RTX 4090": (384, 21),
    "RTX 4080 SUPER": (256, 23),
    "RTX 4080": (256, 22.4),
    "RTX 4070 Ti SUPER": (256, 21),
    "RTX 4070": (192, 21),
    "RTX 4060 Ti": (128, 18),
    "RTX 4060": (128, 17),
    "RTX 4060 Laptop": (128, 16),
    "RTX 3090 Ti": (384, 21),
    "RTX 3090": (384, 19.5),
    "RTX 3080": (320, 19),
    "RTX 3070 Ti": (256, 19),
    "RTX 3070": (256, 14),
    "RTX 3060": (192, 15),
    "RTX 3050 6GB": (96, 14),
    "RTX 2080 Ti": (352, 14),
    "GTX 1660 Ti": (192, 12),
    "GTX 1080 Ti": (352, 11),
    "TITAN RTX": (384, 14),
    "RTX 6000 Ada": (384, 20),
    "RTX A6000": (384, 16),
    "RTX A4000": (256, 14),
    "RTX PRO 6000": (512, 28),
    "L40S": (384, 18),
    "L4": (192, 12.5),
    "A10": (384, 12.5),
    "A40": (384, 14.5),
    "T4": (256, 10),
    "A100-SXM4-40GB": (5120, 2.43),
    "A100-SXM4-80GB": (5120, 3.19),
    "H100 SXM": (5120, 5.23),
    "H100 PCIe": (5120, 3.2),
    "H200": (6144, 6.25),
    "V100": (4096, 1.75),
    "MI300X": (8192, 5.2),
    "MI325X": (8192, 6.0),
    "MI355X": (8192, 8.0),
    "MI250X": (8192, 3.2),
    "RX 7900 XTX": (384, 20),
    "RX 7900 XT": (320, 20),
    "RX 7800 XT": (256, 19.5),
    "RX 7600": (128, 18),
    "RX 9070 XT": (256, 20),
    "RX 6800 XT": (256, 16),
    "Arc A770": (256, 17.5),
    "Arc B580": (192, 19),
    "M1 Max": (512, 6.4),
    "M2 Ultra": (1024, 6.4),
    "M3 Pro": (192, 6.4),
    "M4": (128, 7.5),
    "M4 Pro": (256, 8.533),
    "M4 Max 48GB": (512, 8.533),
    "GB10": (256, 8.533),
    "Ryzen AI Max+ 395": (256, 8.0),
    "RTX 5060 Ti": (128, 28),
    "RTX 5090 Laptop": (256, 28),
    "RTX 4090 D": (384, 21),
    "RTX 4070 Ti": (192, 21),
    "RTX 4070 SUPER": (192, 21),
    "RTX 4090 Laptop": (256, 18),
    "RTX 4080 Laptop": (192, 18),
    "RTX 4070 Laptop": (128, 16),
    "RTX 4050 Laptop": (96, 16),
    "RTX 3070 Laptop": (256, 14),
    "RTX 3060 Laptop": (192, 14),
    "RTX 3050 Laptop": (128, 12),
    "RTX 3080 Ti": (384, 19),
    "RTX 3080 12GB": (384, 19),
    "RTX 3060 Ti": (256, 14),
    "RTX 3060 8GB": (128, 15),
    "RTX 3050": (128, 14),
    "RTX 2080 SUPER": (256, 15.5),
    "RTX 2080": (256, 14),
    "RTX 2060": (192, 14),
    "GTX 1650": (128, 8),
    "GTX 1080": (256, 10),
    "GTX 1070": (256, 8),
    "GTX 1060": (192, 8),
    "RTX 5000 Ada": (256, 18),
    "RTX 4500 Ada": (192, 18),
    "RTX 4000 Ada": (160, 18),
    "RTX 2000 Ada": (128, 14),
    "RTX A5000": (384, 16),
    "RTX A4500": (320, 16),
    "RTX A2000": (192, 12),
    "Quadro RTX 8000": (384, 14),
    "Quadro RTX 6000": (384, 14),
    "B200": (8192, 8),
    "B300": (8192, 8),
    "H200 NVL": (6144, 6.25),
    "GH200 144GB": (6144, 6.4),
    "L40": (384, 18),
    "A10G": (384, 12.5),
    "A30": (3072, 2.43),
    "A2": (128, 12.5),
    "P100": (4096, 1.43),
    "Tesla P40": (384, 7.2),
    "AGX Orin": (256, 6.4),
    "Orin Nano": (128, 6.4),
    "MI350X": (8192, 8),
    "MI250": (8192, 3.2),
    "MI210": (4096, 3.2),
    "MI100": (4096, 2.4),
    "RX 9070": (256, 20),
    "RX 9060 XT": (128, 20),
    "RX 7900 GRE": (256, 18),
    "RX 7700 XT": (192, 18),
    "RX 7600 XT": (128, 18),
    "RX 6950 XT": (256, 18),
    "RX 6900 XT": (256, 16),
    "RX 6700 XT": (192, 16),
    "RX 6600": (128, 14),
    "R9700": (256, 20),
    "W7900": (384, 18),
    "W7800": (256, 18),
    "Arc B570": (160, 19),
    "Arc Pro B60": (192, 19),
    "Arc A750": (256, 16),
    "Max 1550": (8192, 3.2),
    "M1": (128, 4.267),
    "M1 Pro": (256, 6.4),
    "M1 Ultra": (1024, 6.4),
    "M2": (128, 6.4),
    "M2 Pro": (256, 6.4),
    "M2 Max": (512, 6.4),
    "M3": (128, 6.4),
    "M3 Max 36GB": (384, 6.4),
    "M3 Max 48GB": (512, 6.4),
    "M3 Ultra": (1024, 6.4),
    "M4 Max 36GB": (384, 8.533),
    "M5": (128, 9.6),
}

UNITS = {
    # Processors, boost clock in GHz, bf16 FLOPs a clock and processor with FP32 accumulate, dense;
    # processors and clocks as commonly stated.
    "RTX 5090": (170, 2.407, 512),
    "RTX 5080": (84, 2.617, 512),
    "RTX 5070 Ti": (70, 2.452, 512),
    "RTX 5070": (48, 2.512, 512),
    "RTX 4090": (128, 2.52, 512),
    "RTX 4080": (76, 2.505, 512),
    "RTX 4070 Ti": (60, 2.61, 512),
    "RTX 4070": (46, 2.475, 512),
    "RTX 4060 Ti": (34, 2.535, 512),
    "RTX 4060": (24, 2.46, 512),
    "RTX 3090 Ti": (84, 1.86, 512),
    "RTX 3090": (82, 1.695, 512),
    "RTX 3080": (68, 1.71, 512),
    "RTX 3070": (46, 1.725, 512),
    "RTX 3060": (28, 1.777, 512),
    "RTX A6000": (84, 1.8, 1024),
    "RTX A4000": (48, 1.56, 1024),
    "RTX 6000 Ada": (142, 2.505, 1024),
    "RTX PRO 6000": (188, 2.617, 1024),
    "L40S": (142, 2.52, 1024),
    "L4": (58, 2.04, 1024),
    "A10": (72, 1.695, 1024),
    "A40": (84, 1.74, 1024),
    "A30": (56, 1.44, 2048),
    "A100": (108, 1.41, 2048),
    "H100": (132, 1.83, 4096),
    "H100 PCIe": (114, 1.62, 4096),
    "H200": (132, 1.83, 4096),
    "MI300X": (304, 2.1, 2048),
    "MI355X": (256, 2.4, 4096),
    "MI250X": (220, 1.7, 1024),
    "MI210": (104, 1.7, 1024),
    "RX 7900 XTX": (96, 2.5, 512),
    "RX 7900 XT": (84, 2.4, 512),
    "RX 7600": (32, 2.655, 512),
    "RX 9070 XT": (64, 2.97, 1024),
    "RX 9070": (56, 2.52, 1024),
    "RTX 5060 Ti": (36, 2.572, 512),
    "RTX 5060": (30, 2.497, 512),
    "RTX 5050": (20, 2.572, 512),
    "RTX 5090 Laptop": (82, 2.16, 512),
    "RTX 4090 Laptop": (76, 2.04, 512),
    "RTX 4080 Laptop": (58, 2.28, 512),
    "RTX 4070 Laptop": (36, 2.175, 512),
    "RTX 4060 Laptop": (24, 2.37, 512),
    "RTX 4050 Laptop": (20, 2.37, 512),
    "RTX 3070 Laptop": (40, 1.62, 512),
    "RTX 3060 Laptop": (30, 1.703, 512),
    "RTX 3050 Laptop": (16, 1.74, 512),
    "RTX 5000 Ada": (100, 2.55, 1024),
    "RTX 4500 Ada": (60, 2.58, 1024),
    "RTX 4000 Ada": (48, 2.175, 1024),
    "RTX 2000 Ada": (22, 2.13, 1024),
    "RTX A5000": (64, 1.695, 1024),
    "RTX A4500": (56, 1.65, 1024),
    "RTX A2000": (26, 1.2, 1024),
    "L40": (142, 2.49, 512),
    "A10G": (80, 1.71, 512),
    "A2": (10, 1.77, 1024),
    "MI350X": (256, 2.2, 4096),
    "MI250": (208, 1.7, 1024),
    "MI100": (120, 1.502, 512),
    "RX 9060 XT": (32, 3.13, 1024),
    "Ryzen AI Max+ 395": (40, 2.9, 512),
    "Max 1550": (128, 1.6, 4096),
    "Arc B580": (20, 2.85, 2048),
    "Arc Pro B60": (20, 2.4, 2048),
}


def test_it_holds_the_parts_that_people_have() -> None:
    """At least 60 parts of four vendors, each with its source; two parts never share a name."""
    names = [part.hardware.name for part in parts()]
    assert len(names) == len(set(names)) >= 60
    for vendor in ("NVIDIA", "AMD", "Apple", "Intel"):
        assert sum(name.startswith(vendor) for name in names) >= 5, vendor
    for part in parts():
        assert part.hardware.source, part.hardware.name
        assert 2015 < part.year < 2027, part.hardware.name
        assert not part.hardware.assumed


@pytest.mark.parametrize("name", list(BUS))
def test_bandwidth_is_bus_width_times_data_rate(name: str) -> None:
    """A part's bandwidth is what its bus carries, within the 2.5 % that vendors round by."""
    bits, rate = BUS[name]
    assert find_gpu(name).bandwidth == pytest.approx(bits / 8 * rate * 1e9, rel=0.025)


@pytest.mark.parametrize("name", list(UNITS))
def test_the_rate_is_dense_and_accumulates_in_float32(name: str) -> None:
    """The bf16 rate is units × clock × FLOPs: not the sparse one, nor FP16's with half sums."""
    units, clock_ghz, flops = UNITS[name]
    assert find_gpu(name).flops == pytest.approx(units * clock_ghz * 1e9 * flops, rel=0.02)


def test_a_missing_rate_is_null_and_says_why() -> None:
    """Parts without bf16, or whose vendor states no rate, have none, and a note with the reason."""
    missing = [part for part in parts() if part.hardware.flops is None]
    assert missing
    assert [part.hardware.name for part in missing if part.note is None] == []
    assert find_gpu("T4").flops is None
    assert "no bf16 units" in str(note_on("Tesla T4"))
    assert note_on("RTX 4090") is note_on("no such card") is None


def test_memory_is_in_binary_gigabytes() -> None:
    """An 8 GB card has 8 GiB: --gpu-gb 8, which is 8 × 10⁹, fits on it."""
    card = find_gpu("RTX 4060")
    assert card.memory_bytes == 8 * GIB > 8 * GB


@pytest.mark.parametrize(
    ("typed", "name"),
    [
        ("RTX 4060", "NVIDIA GeForce RTX 4060"),
        ("rtx4060", "NVIDIA GeForce RTX 4060"),
        ("geforce rtx-4060", "NVIDIA GeForce RTX 4060"),
        ("4060 8GB", "NVIDIA GeForce RTX 4060"),
        ("RTX 4060 Ti 8GB", "NVIDIA GeForce RTX 4060 Ti 8 GB"),
        ("4060 ti 16 gb", "NVIDIA GeForce RTX 4060 Ti 16 GB"),
        ("RTX 4060 laptop", "NVIDIA GeForce RTX 4060 Laptop GPU"),
        ("a100 40gb", "NVIDIA A100-SXM4-40GB"),
        ("A100-PCIE-40GB", "NVIDIA A100-PCIE-40GB"),
        ("H100", "NVIDIA H100 80GB HBM3"),
        ("H100 PCIe", "NVIDIA H100 PCIe"),
        ("rtx 6000 ada", "NVIDIA RTX 6000 Ada Generation"),
        ("radeon rx 7900 xtx", "AMD Radeon RX 7900 XTX"),
        ("mi300x", "AMD Instinct MI300X"),
        ("arc a770", "Intel Arc A770"),
        ("M2 Max", "Apple M2 Max 32 GB"),
        ("m2 max 96GB", "Apple M2 Max 96 GB"),
        ("M3 Max 128GB", "Apple M3 Max 40-core GPU 128 GB"),
    ],
)
def test_parts_are_found_as_people_write_them(typed: str, name: str) -> None:
    """With or without vendor, hyphens and size; of several sizes the one that is said."""
    assert find_gpu(typed).name == name


def test_every_part_is_found_by_its_own_name() -> None:
    """What the table calls a part finds that part and no other."""
    for part in parts():
        assert find_gpu(part.hardware.name) == part.hardware


def test_an_unknown_gpu_names_the_nearest() -> None:
    """One line with the value and the nearest parts, exit code 2."""
    with pytest.raises(UsageError) as raised:
        find_gpu("RTX 4065")
    assert raised.value.exit_code == 2
    assert "'RTX 4065'" in raised.value.message
    assert "NVIDIA GeForce RTX 4060" in raised.value.message
    assert "\n" not in str(raised.value)
    with pytest.raises(UsageError, match="--gpu-gb"):
        find_gpu("xyzzy")


@pytest.mark.parametrize(
    ("reported", "memory_gib", "name"),
    [
        ("NVIDIA GeForce RTX 3090", 24.0, "NVIDIA GeForce RTX 3090"),
        ("NVIDIA GeForce RTX 4060 Ti", 16.0, "NVIDIA GeForce RTX 4060 Ti 16 GB"),
        ("NVIDIA GeForce RTX 4060 Ti", 7.996, "NVIDIA GeForce RTX 4060 Ti 8 GB"),
        ("NVIDIA GeForce RTX 4060 Laptop GPU", 7.996, "NVIDIA GeForce RTX 4060 Laptop GPU"),
        ("NVIDIA H200", 140.4, "NVIDIA H200"),
        ("NVIDIA H100 80GB HBM3", 79.6, "NVIDIA H100 80GB HBM3"),
        ("NVIDIA H100 PCIe", 79.6, "NVIDIA H100 PCIe"),
        ("NVIDIA A100-SXM4-80GB", 79.3, "NVIDIA A100-SXM4-80GB"),
        ("NVIDIA A100-SXM4-40GB", 39.5, "NVIDIA A100-SXM4-40GB"),
        ("NVIDIA A100 80GB PCIe", 79.3, "NVIDIA A100 80GB PCIe"),
        ("NVIDIA RTX A6000", 47.5, "NVIDIA RTX A6000"),
        ("NVIDIA RTX 6000 Ada Generation", 47.5, "NVIDIA RTX 6000 Ada Generation"),
        ("NVIDIA A10G", 22.5, "NVIDIA A10G"),
        ("NVIDIA B300 SXM6 AC", 268.6, "NVIDIA B300"),
        ("Tesla V100-SXM2-32GB", 31.7, "Tesla V100-SXM2-32GB"),
        ("Tesla T4", 14.6, "Tesla T4"),
        ("NVIDIA GeForce RTX 3060", 11.8, "NVIDIA GeForce RTX 3060"),
        ("AMD Radeon RX 7900 XTX", 24.0, "AMD Radeon RX 7900 XTX"),
        ("Intel(R) Arc(TM) A770 Graphics", 15.9, "Intel Arc A770"),
    ],
)
def test_drivers_names_are_matched(reported: str, memory_gib: float, name: str) -> None:
    """What NVML and torch call a card finds it; its memory tells two sizes of one name apart."""
    found = match_gpu(reported, int(memory_gib * GIB))
    assert found is not None
    assert found.name == name


def test_an_unknown_driver_name_matches_nothing() -> None:
    """A card that is not in the table is not taken for a similar one."""
    assert match_gpu("NVIDIA GeForce RTX 4061") is None
    assert match_gpu("NVIDIA A100-SXM4-40GB MIG 1g.5gb") is None


@pytest.mark.parametrize("gpu_gb", [1, 4, 6, 8, 10, 12, 16, 20, 24, 32, 40, 48, 80, 96, 141, 192])
def test_a_size_alone_assumes_a_card_that_has_it(gpu_gb: float) -> None:
    """The assumed card holds what was asked, is marked as assumed, and is a part of the table."""
    card = assumed_gpu(gpu_gb)
    assert card.assumed
    assert f"assumed for --gpu-gb {gpu_gb:g}" in card.source
    assert card.memory_bytes is not None
    assert card.memory_bytes >= gpu_gb * GB
    part = find_gpu(card.name)
    assert (part.bandwidth, part.flops) == (card.bandwidth, card.flops)
    assert card.bandwidth is not None


def test_assumed_cards_grow_with_the_size() -> None:
    """More memory asked never assumes a card with less."""
    sizes = [assumed_gpu(gpu_gb).memory_bytes or 0 for gpu_gb in range(1, 300)]
    assert sizes == sorted(sizes)


def test_beyond_all_cards_only_the_size_is_known() -> None:
    """No common card has 640 GB: neither bandwidth nor rate is made up."""
    card = assumed_gpu(640)
    assert (card.bandwidth, card.flops) == (None, None)
    assert card.memory_bytes == 640 * GB


@pytest.mark.parametrize("gpu_gb", [0, -8, math.nan, math.inf])
def test_a_size_that_cannot_be_meant_is_refused(gpu_gb: float) -> None:
    """Nothing, less than nothing and no number are usage errors."""
    with pytest.raises(UsageError, match="--gpu-gb"):
        assumed_gpu(gpu_gb)


def test_published_rates_name_parts_and_models_of_the_tables() -> None:
    """Each figure is found under its card and row, and its model is one of the catalogue."""
    for rate in RATES:
        assert find_gpu(rate.hardware).name == rate.hardware
        assert find(rate.model) is not None, rate.model
        assert rate in published(rate.hardware, rate.backend, one_graph=rate.one_graph)
        assert rate not in published(rate.hardware, rate.backend, one_graph=not rate.one_graph)
    assert published("NVIDIA GeForce RTX 3090", "gguf:q4_k_m", one_graph=True) == ()
    assert published("NVIDIA T1000", "bf16", one_graph=False) == ()


def test_published_bf16_rates_are_within_what_the_cards_can_read() -> None:
    """No 16-bit figure beats its card's bandwidth but one, which is known to."""
    beyond = [
        (rate.hardware, rate.backend)
        for rate in RATES
        if rate.backend in {"bf16", "sdpa", "compiled"}
        and rate.tokens_per_s > _limit(find_gpu(rate.hardware), rate.model)
    ]
    assert beyond == [("NVIDIA GeForce RTX 3090", "compiled")]


def _limit(card: Hardware, model: str) -> float:
    """Tokens per second at which the weights, the embedding's rows apart, fill the bandwidth."""
    entry = find(model)
    assert entry is not None
    assert card.bandwidth is not None
    config = entry.config
    lookup = 0 if config["tie_word_embeddings"] else config["vocab_size"] * config["hidden_size"]
    return card.bandwidth / (2 * (entry.parameters - lookup))
