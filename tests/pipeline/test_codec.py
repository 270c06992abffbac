"""Messages: frames survive encoding, older and newer publishers are readable, and any other bytes are a ``CodecError``."""

import io
import random
import struct
from decimal import Decimal

import polars as pl
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from weft.pipeline.codec import DECODED_BYTES_MAX, MESSAGE_BYTES_MAX, decode, encode, headers, messages, table_of
from weft.pipeline.errors import CodecError
from weft.pipeline.tables.families import FAMILIES
from weft.pipeline.tables.field import Table
from weft.pipeline.tables.states import STATES

RUNS = FAMILIES["burst_sample"]
TABLES = [*FAMILIES.values(), *STATES.values()]

INTEGERS = {
    pl.Int16: (-(2**15), 2**15 - 1),
    pl.Int64: (-(2**63), 2**63 - 1),
    pl.UInt8: (0, 2**8 - 1),
    pl.UInt16: (0, 2**16 - 1),
    pl.UInt32: (0, 2**32 - 1),
    pl.UInt64: (0, 2**64 - 1),
}


def cells(dtype: pl.DataType | type[pl.DataType]) -> st.SearchStrategy:
    """Return a strategy for one value of a column's type."""
    if isinstance(dtype, pl.List):
        return st.lists(cells(dtype.inner), max_size=4)
    if isinstance(dtype, pl.Struct):
        return st.fixed_dictionaries({field.name: cells(field.dtype) for field in dtype.fields})
    if isinstance(dtype, pl.Decimal):
        return st.integers(0, 10**38 - 1).map(Decimal)
    kind = dtype if isinstance(dtype, type) else type(dtype)
    if kind in INTEGERS:
        return st.integers(*INTEGERS[kind])
    return {pl.String: st.text(max_size=8), pl.Boolean: st.booleans(), pl.Float64: st.floats(allow_nan=False)}[kind]


@st.composite
def frames(draw, table: Table) -> pl.DataFrame:
    """Return a frame of a table with nulls anywhere."""
    height = draw(st.integers(0, 3))
    columns = {name: draw(st.lists(st.none() | cells(dtype), min_size=height, max_size=height)) for name, dtype in table.polars.items()}
    return pl.DataFrame(columns, schema=table.polars)


def sample(*values: list[int] | None) -> pl.DataFrame:
    return pl.DataFrame({"ts": list(range(len(values))), "values": list(values)}, schema={"ts": pl.Int64, "values": RUNS.polars["values"]})


def stream(frame: pl.DataFrame, **options: object) -> bytes:
    buffer = io.BytesIO()
    frame.write_ipc_stream(buffer, **options)
    return buffer.getvalue()


@pytest.mark.parametrize("table", TABLES, ids=lambda table: table.topic)
def test_any_frame_comes_back(table: Table) -> None:
    """An encoded frame decodes to the same frame, for any values and nulls of any table."""

    @settings(max_examples=10)
    @given(frames(table))
    def holds(frame: pl.DataFrame) -> None:
        assert decode(encode(frame, table), table).equals(frame)

    holds()


@pytest.mark.parametrize(
    ("top", "dtype"), [(255, pl.UInt8), (256, pl.UInt16), (65_536, pl.UInt32), (2**32, pl.UInt64), (2**64 - 1, pl.UInt64)]
)
def test_lists_travel_in_the_narrowest_width(top: int, dtype: type[pl.DataType]) -> None:
    """Samples travel in the width that the largest needs, and decode to the table's width unless ``widen`` is false."""
    frame = sample([0, 1, top], None, [], [None, 7])
    value = encode(frame, RUNS)
    with pa.ipc.open_stream(value) as reader:
        assert pl.from_arrow(reader.read_all())["values"].dtype == pl.List(dtype)
    assert decode(value, RUNS)["values"].equals(frame["values"])
    narrow = decode(value, RUNS, widen=False)["values"]
    assert narrow.dtype == pl.List(dtype)
    assert narrow.to_list() == frame["values"].to_list()


def test_columns_that_a_message_lacks_are_null() -> None:
    """A message of an older publisher decodes with nulls in the column that it lacks."""
    frame = decode(stream(pl.DataFrame({"ts": [5, 6]})), RUNS)
    assert frame.columns == list(RUNS.polars)
    assert frame["ts"].to_list() == [5, 6]
    assert frame["values"].to_list() == [None, None]


def test_columns_that_the_table_lacks_are_dropped() -> None:
    """A message of a newer publisher decodes without its additional column."""
    frame = decode(stream(pl.DataFrame({"ts": [5], "colour": ["green"]})), RUNS)
    assert frame.columns == list(RUNS.polars)


def test_a_producer_cannot_send_a_column_that_the_table_lacks() -> None:
    """A misspelt column is an error at the publisher, not a silently lost column."""
    with pytest.raises(CodecError, match="no column 'vaules'"):
        encode(pl.DataFrame({"vaules": [[1]]}), RUNS)


def test_a_column_of_a_type_that_fits_is_cast() -> None:
    """Narrower integers are cast to the table's type; types without a cast are an error."""
    assert decode(stream(pl.DataFrame({"ts": pl.Series([7], dtype=pl.Int32)})), RUNS)["ts"].to_list() == [7]
    with pytest.raises(CodecError):
        decode(stream(pl.DataFrame({"ts": ["noon"]})), RUNS)
    with pytest.raises(CodecError):
        decode(stream(pl.DataFrame({"values": [[-1]]})), RUNS)


@pytest.mark.parametrize("table", TABLES, ids=lambda table: table.topic)
def test_headers_name_the_table(table: Table) -> None:
    """A reader finds the table by the headers alone, family and state of one name apart."""
    assert table_of(headers(table)) is table
    assert headers(table, source="x")["source"] == "x"


@pytest.mark.parametrize("wrong", [{}, {"schema": "weather"}, {"version": "2"}, {"version": ""}, {"version": "one"}, {"state": "1"}])
def test_a_message_of_another_version_or_name_is_refused(wrong: dict[str, str]) -> None:
    """A schema or version that this Weft does not read is an error that names it."""
    asked = {**headers(RUNS), **wrong} if wrong else {}
    with pytest.raises(CodecError, match="schema"):
        table_of(asked)


def test_frames_are_cut_to_messages_of_bounded_size() -> None:
    """A large frame becomes several messages, each below the limit, with all rows in order."""
    rng = random.Random(1)
    frame = sample(*([rng.getrandbits(60) for _ in range(500)] for _ in range(400)))
    pieces = list(messages(frame, RUNS))
    assert len(pieces) > 2
    assert all(len(value) <= MESSAGE_BYTES_MAX for value, _ in pieces)
    assert sum(rows for _, rows in pieces) == frame.height
    assert pl.concat([decode(value, RUNS) for value, _ in pieces])["values"].equals(frame["values"])


@given(st.binary(max_size=300))
def test_any_bytes_are_a_codec_error(value: bytes) -> None:
    """Bytes that are no message raise ``CodecError`` and nothing else."""
    with pytest.raises(CodecError):
        decode(value, RUNS)


@settings(max_examples=300)
@given(st.data())
def test_any_damage_gives_a_frame_or_a_codec_error(data: st.DataObject) -> None:
    """A message with flipped bits, replaced numbers or missing bytes is a frame of the table or a ``CodecError``."""
    table = data.draw(st.sampled_from([RUNS, STATES["port_samples"], STATES["bursts"]]))
    nulls = pl.DataFrame({name: [None, None] for name in table.polars}, schema=table.polars)
    value = bytearray(encode(sample([1, 2, 300], [4]) if table is RUNS else nulls, table))
    for _ in range(data.draw(st.integers(1, 3))):
        at = data.draw(st.integers(0, len(value) - 1))
        kind = data.draw(st.sampled_from(["bit", "number", "cut", "end"]))
        if kind == "bit":
            value[at] ^= 1 << data.draw(st.integers(0, 7))
        elif kind == "number":
            new = struct.pack("<q", data.draw(st.sampled_from([-(2**63), -1, 0, 1, 2**31, 2**40, 2**62])))
            value[at : at + 8] = new
        elif kind == "cut":
            del value[at : at + data.draw(st.integers(1, 40))]
        else:
            del value[at:]
        if not value:
            return
    try:
        frame = decode(bytes(value), table, widen=data.draw(st.booleans()))
    except CodecError:
        return
    assert frame.columns == list(table.polars)
    frame.rows()


def claims(value: bytes, length: int) -> bytes:
    """Return the message with the first compressed buffer claiming another length when unpacked."""
    reader = pa.ipc.MessageReader.open_stream(value)
    schema, batch = reader.read_next_message(), reader.read_next_message()
    assert (schema.type, batch.type) == ("schema", "record batch")
    body = batch.body.to_pybytes()
    place = value.index(body)
    return value[:place] + struct.pack("<q", length) + value[place + 8 :]


@pytest.mark.parametrize("length", [2**34, 2**47, 2**62, 2**63 - 1, -2, -(2**63)])
def test_a_message_cannot_claim_memory(length: int) -> None:
    """A buffer that claims terabytes is refused before allocation: a failed allocation would end the process."""
    value = encode(pl.DataFrame({"ts": [1] * 500}), RUNS)
    with pytest.raises(CodecError):
        decode(claims(value, length), RUNS)


def test_a_message_cannot_claim_values_for_nothing() -> None:
    """Nulls take no bytes, so their number has a limit of its own."""
    batch = pa.record_batch([pa.nulls(DECODED_BYTES_MAX // 8 + 1)], ["ts"])
    sink = io.BytesIO()
    with pa.ipc.new_stream(sink, batch.schema) as writer:
        writer.write_batch(batch)
    with pytest.raises(CodecError, match="claims"):
        decode(sink.getvalue(), RUNS)


def test_a_message_cannot_unpack_to_more_than_the_bound() -> None:
    """Half a megabyte that really unpacks to more than the bound is refused too."""
    bomb = encode(pl.DataFrame({"values": [[0] * 100_000] * 100}), RUNS)
    assert len(bomb) < MESSAGE_BYTES_MAX
    assert decode(bomb, RUNS, widen=False)["values"].list.len().sum() == 10_000_000
    zeros = pa.record_batch([pa.array(memoryview(bytes(2**25)).cast("q"), pa.int64())], ["ts"])
    sink = io.BytesIO()
    options = pa.ipc.IpcWriteOptions(compression="lz4")
    with pa.ipc.new_stream(sink, zeros.schema, options=options) as writer:
        for _ in range(10):
            writer.write_batch(zeros)
    with pytest.raises(CodecError, match="more than"):
        decode(sink.getvalue(), RUNS)


def test_a_dictionary_is_refused() -> None:
    """A column of an unsupported kind, such as a dictionary, is an error."""
    batch = pa.record_batch([pa.array(["a", "a"]).dictionary_encode()], ["port"])
    sink = io.BytesIO()
    with pa.ipc.new_stream(sink, batch.schema) as writer:
        writer.write_batch(batch)
    with pytest.raises(CodecError):
        decode(sink.getvalue(), RUNS)
