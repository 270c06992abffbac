"""The counter dictionary against the facts of its sources, and against data of real devices."""

import json
import re
from collections import Counter as Multiset

import pytest
from hypothesis import given
from hypothesis import strategies as st
from shared_data import SHARED

from weft.pipeline.dictionary import KINDS, OBJECTS, Found, Width, dictionary, read
from weft.pipeline.tables.families import FAMILIES

SYSFS = SHARED / "infiniband-sysfs" / "procfs_fixtures_infiniband.ttar"
GNMI = SHARED / "gnmi"
TCPDUMP = SHARED / "sflow" / "tcpdump_sflow_multiple_counter_30_pdus.expected.txt"
ABSENT = "the shared data folder is not here"

PORT, QUEUE, POOL, GROUP = 1, 21, 24, 26

KNOWN = dictionary()


def of_sai(object_type: int, stat: int) -> tuple[str, str, int | None]:
    """Return the name, the canonical counter and the index of a SAI statistic."""
    found = KNOWN.sai(object_type, stat)
    assert found is not None, (object_type, hex(stat))
    return found.name, found.alias.counter.key, found.n


@pytest.mark.parametrize(
    ("object_type", "stat", "name", "counter"),
    [
        (PORT, 0x0, "SAI_PORT_STAT_IF_IN_OCTETS", "port.rx_bytes"),
        (PORT, 0x1, "SAI_PORT_STAT_IF_IN_UCAST_PKTS", "port.rx_unicast_packets"),
        (PORT, 0x3, "SAI_PORT_STAT_IF_IN_DISCARDS", "port.rx_discards"),
        (PORT, 0x4, "SAI_PORT_STAT_IF_IN_ERRORS", "port.rx_errors"),
        (PORT, 0x9, "SAI_PORT_STAT_IF_OUT_OCTETS", "port.tx_bytes"),
        (PORT, 0xC, "SAI_PORT_STAT_IF_OUT_DISCARDS", "port.tx_discards"),
        (PORT, 0x44, "SAI_PORT_STAT_WRED_DROPPED_PACKETS", "reading.port_wred_dropped_packets"),
        (PORT, 0x46, "SAI_PORT_STAT_ECN_MARKED_PACKETS", "port.ecn_marked_packets"),
        (PORT, 0x62, "SAI_PORT_STAT_OUT_SHARED_WATERMARK_BYTES", "reading.port_tx_shared_watermark_bytes"),
        (PORT, 0x6D, "SAI_PORT_STAT_PFC_3_RX_PKTS", "queue.pfc_rx_frames"),
        (PORT, 0x6E, "SAI_PORT_STAT_PFC_3_TX_PKTS", "queue.pfc_tx_frames"),
        (PORT, 0x8D, "SAI_PORT_STAT_PFC_3_RX_PAUSE_DURATION_US", "queue.pfc_rx_pause_us"),
        (PORT, 0xB2, "SAI_PORT_STAT_IF_IN_FEC_CORRECTABLE_FRAMES", "port.fec_corrected"),
        (PORT, 0xB3, "SAI_PORT_STAT_IF_IN_FEC_NOT_CORRECTABLE_FRAMES", "port.fec_uncorrectable"),
        (PORT, 0xB4, "SAI_PORT_STAT_IF_IN_FEC_SYMBOL_ERRORS", "port.symbol_errors"),
        (PORT, 0xC8, "SAI_PORT_STAT_IF_IN_FEC_CORRECTED_BITS", "port.corrected_bits"),
        (PORT, 0xC9, "SAI_PORT_STAT_TRIM_PACKETS", "port.trimmed_packets"),
        (PORT, 0xCC, "SAI_PORT_STAT_LLR_TX_INIT_CTL_OS", "reading.llr_tx_init_ctl_os"),
        (PORT, 0xE1, "SAI_PORT_STAT_LLR_RX_REPLAY", "reading.llr_rx_replay"),
        (PORT, 0xE2, "SAI_PORT_STAT_CBFC_SENDER_CREDITS_USED", "reading.cbfc_sender_credits_used"),
        (QUEUE, 0x1, "SAI_QUEUE_STAT_BYTES", "queue.bytes"),
        (QUEUE, 0x18, "SAI_QUEUE_STAT_CURR_OCCUPANCY_BYTES", "queue.occupancy_bytes"),
        (QUEUE, 0x19, "SAI_QUEUE_STAT_WATERMARK_BYTES", "queue.watermark_bytes"),
        (QUEUE, 0x22, "SAI_QUEUE_STAT_WRED_ECN_MARKED_PACKETS", "queue.ecn_marked_packets"),
        (QUEUE, 0x27, "SAI_QUEUE_STAT_DELAY_WATERMARK_NS", "queue.delay_watermark_ns"),
        (GROUP, 0x3, "SAI_INGRESS_PRIORITY_GROUP_STAT_WATERMARK_BYTES", "queue.watermark_bytes"),
        (GROUP, 0x7, "SAI_INGRESS_PRIORITY_GROUP_STAT_XOFF_ROOM_WATERMARK_BYTES", "queue.headroom_watermark_bytes"),
        (GROUP, 0x8, "SAI_INGRESS_PRIORITY_GROUP_STAT_DROPPED_PACKETS", "queue.dropped_packets"),
        (POOL, 0x1, "SAI_BUFFER_POOL_STAT_WATERMARK_BYTES", "queue.watermark_bytes"),
        (POOL, 0x14, "SAI_BUFFER_POOL_STAT_XOFF_ROOM_WATERMARK_BYTES", "queue.headroom_watermark_bytes"),
    ],
)
def test_sai_numbers_are_those_of_the_headers(object_type: int, stat: int, name: str, counter: str) -> None:
    """A statistic of the SAI headers is found by its number, under its name there."""
    assert of_sai(object_type, stat)[:2] == (name, counter)


def test_sai_numbers_of_priorities_and_bins_follow_their_step() -> None:
    """Every priority and every FEC bin has the number that the headers' order gives it."""
    for n in range(8):
        assert of_sai(PORT, 0x67 + 2 * n) == (f"SAI_PORT_STAT_PFC_{n}_RX_PKTS", "queue.pfc_rx_frames", n)
        assert of_sai(PORT, 0x68 + 2 * n) == (f"SAI_PORT_STAT_PFC_{n}_TX_PKTS", "queue.pfc_tx_frames", n)
        assert of_sai(PORT, 0x77 + 2 * n)[1:] == ("queue.pfc_rx_pause_quanta", n)
        assert of_sai(PORT, 0x78 + 2 * n)[1:] == ("queue.pfc_tx_pause_quanta", n)
        assert of_sai(PORT, 0x87 + 2 * n)[1:] == ("queue.pfc_rx_pause_us", n)
        assert of_sai(PORT, 0x88 + 2 * n)[1:] == ("queue.pfc_tx_pause_us", n)
        assert of_sai(PORT, 0x97 + n)[1:] == ("queue.pfc_on2off", n)
    for n in range(17):
        assert of_sai(PORT, 0xB7 + n) == (f"SAI_PORT_STAT_IF_IN_FEC_CODEWORD_ERRORS_S{n}", "port.fec_bins", n)


def test_sai_has_no_holes() -> None:
    """The enumerations have no gaps, so every number up to their ends is known, each once, and none beyond."""
    for object_type, count in ((PORT, 0xE8), (QUEUE, 0x2F), (GROUP, 0xF), (POOL, 0x19)):
        names = [of_sai(object_type, stat)[0] for stat in range(count)]
        assert len(set(names)) == count
        assert KNOWN.sai(object_type, count) is None
    assert KNOWN.sai(99, 0) is None


def test_names_are_unique() -> None:
    """No source has one name or number for two counters, but DCGM has old and new names for one number."""
    names = Multiset((alias.source, alias.spell(n)) for alias in KNOWN.aliases for n in alias.indices())
    assert [name for name, count in names.items() if count > 1] == []
    numbers: dict[tuple[str, str, int | None], set[tuple[str, int | None]]] = {}
    for alias in KNOWN.aliases:
        for n in alias.indices():
            if alias.id is not None:
                numbers.setdefault((alias.source, alias.object, alias.number(n)), set()).add((alias.counter.key, n))
    assert [number for number, meanings in numbers.items() if len(meanings) > 1] == []


@pytest.mark.parametrize("source", ["sai", "openconfig", "sflow", "mlx5_ethtool", "linux", "juniper", "nokia", "arista", "ionic", "efa"])
def test_a_column_has_one_name_in_what_a_device_says_at_once(source: str) -> None:
    """Two names of one device never write the same column of the same object, so that no sample replaces another."""
    names = Multiset((alias.object, alias.counter.key) for alias in KNOWN.aliases if alias.source == source)
    assert [name for name, count in names.items() if count > 1] == []


def test_counters_of_a_family_are_its_columns() -> None:
    """A counter with a column has the column's unit; all counters of ports and queues have columns, and all columns entries."""
    for counter in KNOWN.counters.values():
        assert counter.kind in KINDS and counter.doc, counter.key
        table = FAMILIES.get(counter.family)
        if table is not None and counter.family != "reading":
            units = {field.name: field.unit for field in table.fields}
            assert counter.name in units or counter.family not in ("port", "queue"), counter.key
            assert units.get(counter.name, "") in ("", counter.unit), counter.key
    head = {"ts", "recv_ts", "source", "device", "epoch", "port", "queue", "direction"}
    columns = {f"port.{name}" for name in FAMILIES["port"].polars if name not in head}
    columns |= {f"queue.{name}" for name in FAMILIES["queue"].polars if name not in head | {"speed_bps"}}
    assert columns - KNOWN.counters.keys() == set()


def test_aliases_can_be() -> None:
    """Widths are 1 to 64 bits, scales positive, objects and kinds known, and only a counter saturates."""
    for alias in KNOWN.aliases:
        assert 1 <= alias.width <= 64 and alias.scale > 0, alias.name
        assert alias.object in OBJECTS and alias.kind in KINDS, alias.name
        assert ("{n}" in alias.name) == (alias.span is not None), alias.name
        assert alias.kind == "counter" or not alias.saturates, alias.name
        assert alias.unknown is None or 0 <= alias.unknown < 2**64


def test_find_and_of_are_each_others_reverse() -> None:
    """Every name maps to its counter and back, index included; a family prefix selects among counters of one name."""
    for alias in KNOWN.aliases:
        assert alias in KNOWN.of(alias.counter.key) and alias in KNOWN.of(alias.counter.name)
        for n in alias.indices():
            assert KNOWN.find(alias.source, alias.spell(n)) == Found(alias, n)
    assert {alias.counter.family for alias in KNOWN.of("rx_bytes")} == {"port", "nic", "nvlink"}
    assert {alias.counter.family for alias in KNOWN.of("nic.rx_bytes")} == {"nic"}
    assert KNOWN.of("nothing") == [] and KNOWN.find("sai", "rx_bytes") is None and KNOWN.find("nobody", "rx_bytes") is None


def test_exporters_use_the_names_of_what_they_export() -> None:
    """dcgm-exporter's metrics are DCGM's fields by name; the drivers' names with blanks are found with and without them."""
    found = KNOWN.find("prometheus", "DCGM_FI_PROF_NVLINK_TX_BYTES")
    assert found is not None and found.alias.counter.key == "nvlink.tx_bytes_per_second"
    assert KNOWN.find("irdma", "Nak Sequence Error") == KNOWN.find("irdma", "Nak_Sequence_Error") is not None


@pytest.mark.parametrize(
    ("number", "old", "new"),
    [
        (1201, "DCGM_FI_DEV_NVLINK_COUNT_TX_BYTES", "DCGM_FI_DEV_NVLINK_TX_BYTES_TOTAL"),
        (1002, "DCGM_FI_PROF_SM_ACTIVE", "DCGM_FI_PROF_SM_UTIL_RATIO"),
        (429, "DCGM_FI_DEV_NVLINK_REPLAY_ERROR_COUNT_TOTAL", "DCGM_FI_DEV_NVLINK_REPLAY_ERROR_TOTAL"),
        (403, "DCGM_FI_DEV_NVLINK_CRC_FLIT_ERROR_COUNT_L3", "DCGM_FI_DEV_NVLINK_CRC_FLIT_ERROR_L3_TOTAL"),
        (468, "DCGM_FI_DEV_NVLINK_REPLAY_ERROR_COUNT_L11", "DCGM_FI_DEV_NVLINK_REPLAY_ERROR_L11_TOTAL"),
        (418, "DCGM_FI_DEV_NVLINK_CRC_DATA_ERROR_COUNT_L14", "DCGM_FI_DEV_NVLINK_CRC_DATA_ERROR_L14_TOTAL"),
        (493, "DCGM_FI_DEV_NVLINK_RECOVERY_ERROR_COUNT_L17", "DCGM_FI_DEV_NVLINK_RECOVERY_ERROR_L17_TOTAL"),
    ],
)
def test_old_and_new_names_of_dcgm_are_one_field(number: int, old: str, new: str) -> None:
    """A field that DCGM renamed is found by both names and by its number, and is the same counter of the same link."""
    before, after = KNOWN.find("dcgm", old), KNOWN.find("dcgm", new)
    assert before is not None and after is not None
    assert (before.alias.counter, before.n) == (after.alias.counter, after.n)
    assert before.alias.number(before.n) == after.alias.number(after.n) == number
    assert KNOWN.number("dcgm", after.alias.object, number) in (before, after)


@pytest.mark.parametrize(
    ("source", "name", "bits", "saturates", "scale"),
    [
        ("mlx5_sysfs", "port_xmit_data", 64, False, 4),
        ("mlx5_sysfs", "symbol_error", 16, True, 1),
        ("mlx5_sysfs", "link_downed", 8, True, 1),
        ("mlx5_sysfs", "local_link_integrity_errors", 4, True, 1),
        ("mlx5_sysfs", "out_of_sequence", 32, False, 1),
        ("mlx5_sysfs", "rp_cnp_handled", 64, False, 1),
        ("efa", "tx_bytes", 64, False, 1),
        ("irdma", "cnpSent", 32, False, 1),
        ("sflow", "ifInUcastPkts", 32, False, 1),
        ("sflow", "ifInOctets", 64, False, 1),
        ("prometheus", "node_infiniband_port_data_received_bytes_total", 64, False, 1),
    ],
)
def test_registers_are_as_wide_as_they_are(source: str, name: str, bits: int, saturates: bool, scale: float) -> None:
    """Width, saturation and scale are those that the drivers and standards document."""
    found = KNOWN.find(source, name)
    assert found is not None
    assert (found.alias.width, found.alias.saturates, found.alias.scale) == (bits, saturates, scale)


def test_all_ones_of_sflow_mean_unknown_at_their_width() -> None:
    """The value for "not counted" is all ones of the field, and exists only for sources that use it."""
    unknown = {name: found.alias.unknown for name in ("ifInErrors", "ifInOctets") if (found := KNOWN.find("sflow", name))}
    assert unknown == {"ifInErrors": 0xFFFFFFFF, "ifInOctets": 0xFFFFFFFFFFFFFFFF}
    found = KNOWN.find("sai", "SAI_PORT_STAT_IF_IN_OCTETS")
    assert found is not None and found.alias.unknown is None


def test_width_of_columns_as_collectors_publish_them() -> None:
    """sFlow publishes its registers unchanged, 32 bits but for the octets; other sources publish 64; gauges stay gauges."""
    narrow, wide = Width(32, "counter", False), Width(64, "counter", False)
    for column in ("rx_unicast_packets", "rx_packets", "tx_discards", "fcs_errors", "symbol_errors"):
        assert KNOWN.width("sflow", "port", column) == narrow, column
    assert KNOWN.width("sflow", "port", "rx_bytes") == wide
    for source in ("gnmi", "hft", "otlp", "host", "sai", "nobody"):
        assert KNOWN.width(source, "port", "rx_unicast_packets") == wide, source
    assert KNOWN.width("hft", "queue", "occupancy_bytes") == Width(64, "gauge", False)
    assert KNOWN.width("gnmi", "queue", "watermark_bytes") == Width(64, "watermark", False)
    assert KNOWN.width("sflow", "port", "no_such_column") == wide


@pytest.mark.parametrize(
    ("text", "first"),
    [
        ("PFC_3_RX", "SAI_PORT_STAT_PFC_3_RX_PKTS"),
        ("sai-port-stat pfc 3 rx pkts", "SAI_PORT_STAT_PFC_3_RX_PKTS"),
        ("rx_prio3_pause", "rx_prio3_pause"),
        ("IFINOCTETS", "ifInOctets"),
        ("state/counters/in-octets", "/interfaces/interface/state/counters/in-octets"),
    ],
)
def test_explain_takes_what_a_user_types(text: str, first: str) -> None:
    """Parts of names, in any case and with any separators, rank names by the part that matches."""
    assert KNOWN.explain(text)[0].name == first


def test_explain_finds_a_name_and_its_namesakes() -> None:
    """A name of both a source and Weft finds both; an unknown text finds nothing, and similar names are offered."""
    assert {found.alias.counter.key for found in KNOWN.explain("rx_packets")} == {"port.rx_packets", "nic.rx_packets", "nvlink.rx_packets"}
    assert KNOWN.explain("rx_pakets") == [] and "rx_packets" in KNOWN.near("rx_pakets")
    assert KNOWN.explain("") == KNOWN.explain("---") == []


@given(st.text(max_size=60))
def test_any_text_can_be_asked(text: str) -> None:
    """No text makes a look-up fail."""
    assert all(found.alias in KNOWN.aliases for found in KNOWN.explain(text))
    assert KNOWN.find("sai", text) is None or text.replace(" ", "_").startswith(("SAI_", "PFC_", "FEC_"))


def test_it_is_read_once() -> None:
    """A process reads the file once."""
    dictionary.cache_clear()
    assert dictionary() is dictionary()
    assert dictionary.cache_info().misses == 1


def test_the_file_may_say_nothing_else() -> None:
    """An unknown word or an undeclared source is an error."""
    sources = {"one": {"doc": "", "object": "port"}}
    table = read({"sources": sources, "port": {"rx_bytes": {"doc": "bytes", "one": "a_{n} queue 32 x4 saturates #0x10+2 1..3"}}})
    found = table.find("one", "a_2")
    assert found is not None
    alias = found.alias
    assert (alias.object, alias.width, alias.scale, alias.saturates, alias.number(found.n)) == ("queue", 32, 4.0, True, 0x14)
    assert table.find("one", "a_4") is None
    with pytest.raises(ValueError, match="bananas"):
        read({"sources": sources, "port": {"rx_bytes": {"doc": "bytes", "one": "a bananas"}}})
    with pytest.raises(KeyError, match="two"):
        read({"sources": sources, "port": {"rx_bytes": {"doc": "bytes", "two": "a"}}})


@pytest.mark.skipif(not SYSFS.is_file(), reason=ABSENT)
def test_every_counter_file_of_real_adapters_is_known() -> None:
    """The counters of mlx5, mlx4 and hfi1 adapters in counters/ and hw_counters/ are in the dictionary."""
    files = set(re.findall(r"^Path: .*/(?:hw_)?counters/(\w+)$", SYSFS.read_text(), re.MULTILINE))
    assert len(files) > 40
    assert [name for name in sorted(files) if KNOWN.find("mlx5_sysfs", name) is None] == []


# Leaves of /interfaces/interface/state/counters in openconfig-interfaces.yang.
OPENCONFIG_LEAVES = {
    *(f"{io}-{what}" for io in ("in", "out") for what in ("octets", "pkts", "discards", "errors")),
    *(f"{io}-{cast}-pkts" for io in ("in", "out") for cast in ("unicast", "multicast", "broadcast")),
    *("in-unknown-protos", "in-fcs-errors", "carrier-transitions", "link-transitions", "interface-transitions", "last-clear", "resets"),
}


def leaves(folder: str) -> set[str]:
    """Return the paths of a recorded gNMI stream, without keys, origins and prefixes of modules."""
    paths = set()
    for message in json.loads((GNMI / folder / "responses.json").read_text()):
        update = message.get("update", {})
        prefix = update.get("prefix", {}).get("elem", [])
        for one in update.get("update", []):
            names = [elem["name"].rpartition(":")[2] for elem in (*prefix, *one["path"]["elem"]) if "name" in elem]
            paths.add("/" + "/".join(names))
    return paths


@pytest.mark.skipif(not GNMI.is_dir(), reason=ABSENT)
def test_interface_counters_of_a_real_switch_are_known() -> None:
    """Every leaf of a Ciena switch's stream that OpenConfig defines is found, and its octets are port.rx_bytes."""
    base = "/interfaces/interface/state/counters/"
    told = {path for path in leaves("issue_16476") if path.startswith(base)}
    defined = {path for path in told if path.removeprefix(base) in OPENCONFIG_LEAVES}
    assert len(defined) > 10
    assert [path for path in sorted(defined) if KNOWN.find("openconfig", path) is None] == []
    assert {base + leaf for leaf in OPENCONFIG_LEAVES} <= {alias.name for alias in KNOWN.aliases if alias.source == "openconfig"}
    found = KNOWN.find("openconfig", base + "in-octets")
    assert found is not None and found.alias.counter.key == "port.rx_bytes"


@pytest.mark.skipif(not GNMI.is_dir(), reason=ABSENT)
def test_queue_counters_of_a_real_juniper_are_known() -> None:
    """Every numeric leaf of a Juniper's queue monitor is found, as a counter of the queue."""
    told = {path for path in leaves("issue_16515") if "/egress/" in path}
    found = {path: KNOWN.find("juniper", path) for path in told}
    assert len(told) == 14 and [path for path, one in found.items() if one is None] == []
    assert {one.alias.object for one in found.values() if one} == {"queue"}


# The output of tcpdump for a counter sample, and the field of the structure.
PRINTED = {
    "Generic": {
        "ifindex": "ifIndex",
        "iftype": "ifType",
        "ifspeed": "ifSpeed",
        "ifdirection": "ifDirection",
        "ifstatus": "ifStatus",
        "In octets": "ifInOctets",
        "In unicast pkts": "ifInUcastPkts",
        "In multicast pkts": "ifInMulticastPkts",
        "In broadcast pkts": "ifInBroadcastPkts",
        "In discards": "ifInDiscards",
        "In errors": "ifInErrors",
        "In unknown protos": "ifInUnknownProtos",
        "Out octets": "ifOutOctets",
        "Out unicast pkts": "ifOutUcastPkts",
        "Out multicast pkts": "ifOutMulticastPkts",
        "Out broadcast pkts": "ifOutBroadcastPkts",
        "Out discards": "ifOutDiscards",
        "Out errors": "ifOutErrors",
        "Out promisc mode": "ifPromiscuousMode",
    },
    "Ethernet": {
        "align errors": "dot3StatsAlignmentErrors",
        "fcs errors": "dot3StatsFCSErrors",
        "single collision": "dot3StatsSingleCollisionFrames",
        "multiple collision": "dot3StatsMultipleCollisionFrames",
        "test error": "dot3StatsSQETestErrors",
        "deferred": "dot3StatsDeferredTransmissions",
        "late collision": "dot3StatsLateCollisions",
        "excessive collision": "dot3StatsExcessiveCollisions",
        "mac trans error": "dot3StatsInternalMacTransmitErrors",
        "carrier error": "dot3StatsCarrierSenseErrors",
        "frames too long": "dot3StatsFrameTooLongs",
        "mac receive errors": "dot3StatsInternalMacReceiveErrors",
        "symbol errors": "dot3StatsSymbolErrors",
    },
}


@pytest.mark.skipif(not TCPDUMP.is_file(), reason=ABSENT)
def test_every_field_that_tcpdump_prints_is_known() -> None:
    """All fields of generic and Ethernet counters that another decoder prints have a name and a counter of their own."""
    printed: dict[str, set[str]] = {"Generic": set(), "Ethernet": set()}
    kind = ""
    for line in TCPDUMP.read_text().splitlines():
        record = re.search(r"enterprise 0, (Generic|Ethernet) counter", line)
        if record:
            kind = record[1]
        elif kind and line.startswith("\t      "):
            side = re.match(r"\s+(In|Out) ", line)
            labels = re.findall(r"([A-Za-z][A-Za-z ]*?) \d+", line)
            printed[kind] |= {label if not side or label.startswith(side[1]) else f"{side[1]} {label}" for label in labels}
        else:
            kind = ""
    assert {kind: set(names) for kind, names in PRINTED.items()} == printed
    fields = [field for names in PRINTED.values() for field in names.values()]
    found = {field: KNOWN.find("sflow", field) for field in fields}
    assert [field for field, one in found.items() if one is None] == []
    assert len({one.alias.counter.key for one in found.values() if one}) == len(fields)
