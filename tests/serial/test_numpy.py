from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from shoal.serial import Hooks, deserialize, serialize
from shoal.serial.arrays import OUT_OF_BAND_MIN_BYTES
from tests.serial.ways import WAYS, Way, in_message, through_store

np = pytest.importorskip("numpy")
# It needs numpy to be imported.
from hypothesis.extra import numpy as hnp  # noqa: E402 - see above

DTYPES = [
    "?", "b", "B", "h", "H", "i", "I", "l", "L", "q", "Q", "e", "f", "d", "g", "F", "D", "G",
    "S7", "U5", "M8[ns]", "M8[D]", "m8[us]", ">f8", ">i4", ">U3", "S", "V6",
    [("a", "i4"), ("b", "f8")], [("a", "i4", (2,)), ("b", "U3")],
]  # fmt: skip


def same(back: Any, array: Any) -> bool:
    return bool(
        type(back) is type(array)
        and back.dtype == array.dtype
        and back.shape == array.shape
        and back.tobytes() == array.tobytes()
        and (back.flags.f_contiguous == array.flags.f_contiguous or not array.flags.forc)
    )


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("shape", [(), (0,), (3, 0), (5,), (3, 4), (70, 80), (2, 3, 700)], ids=str)
def test_dtypes_and_shapes(way: Way, dtype: Any, shape: tuple[int, ...]) -> None:
    dtype = np.dtype(dtype)
    count = int(np.prod(shape)) * max(dtype.itemsize, 1)
    raw = np.random.default_rng(1).integers(0, 2 if dtype.char == "?" else 100, count, np.uint8)
    array = np.zeros(shape, dtype)
    if dtype.itemsize and dtype.kind != "U":
        array = np.frombuffer(raw.tobytes(), dtype)[: int(np.prod(shape))].reshape(shape)
    for variant in (array, np.asfortranarray(array), array.T, array[::2] if shape else array):
        assert same(way(variant), variant)
        assert same(way({"k": [variant]})["k"][0], variant)


@pytest.mark.parametrize("way", WAYS)
@given(
    array=hnp.arrays(
        st.one_of(
            hnp.boolean_dtypes(),
            hnp.integer_dtypes(endianness="?"),
            hnp.floating_dtypes(endianness="?"),
            hnp.complex_number_dtypes(),
            hnp.datetime64_dtypes(),
            hnp.timedelta64_dtypes(),
            hnp.byte_string_dtypes(),
            hnp.unicode_string_dtypes(),
            hnp.array_dtypes(),
        ),
        hnp.array_shapes(min_dims=0, min_side=0, max_side=6),
    ),
    data=st.data(),
)
def test_any_array_and_any_slice_of_it(way: Way, array: Any, data: st.DataObject) -> None:
    assert same(way(array), array)
    part = array[data.draw(hnp.basic_indices(array.shape, allow_newaxis=True))]
    assert same(way(part), part)


@pytest.mark.parametrize("way", WAYS)
def test_arrays_are_read_only_at_any_size(way: Way) -> None:
    for size in (0, 1, 10, 511, 512, 513, 100_000):
        back = way([np.zeros(size)])[0]
        assert not back.flags.writeable
        if size:
            with pytest.raises(ValueError, match="read-only"):
                back[0] = 1


def test_large_arrays_are_views_of_the_block_and_aligned() -> None:
    from shoal.serial import layout_size, read_layout, write_layout

    serialized = serialize([np.arange(1000.0), b"odd", np.arange(3000, dtype="i2")])
    block = bytearray(layout_size(serialized) + 64)
    offset = -np.frombuffer(block, np.uint8).ctypes.data % 64  # blocks start at multiples of 64
    view = memoryview(block)[offset:]
    write_layout(serialized, view)
    first, _, second = deserialize(*read_layout(view))
    assert first.ctypes.data % 64 == second.ctypes.data % 64 == 0
    # The reader's array changes with the block: nothing was copied.
    start = bytes(block).index(np.arange(1000.0).tobytes())
    block[start : start + 8] = np.float64(42).tobytes()
    assert first[0] == 42


def test_where_the_line_between_inside_and_beside_the_stream_lies() -> None:
    below = serialize(np.zeros(OUT_OF_BAND_MIN_BYTES - 1, np.uint8))
    assert not below.buffers
    at = serialize(np.zeros(OUT_OF_BAND_MIN_BYTES, np.uint8))
    assert [buffer.nbytes for buffer in at.buffers] == [OUT_OF_BAND_MIN_BYTES]
    assert len(at.data) < 200


@pytest.mark.parametrize(
    "index",
    [np.s_[::2], np.s_[:, ::3], np.s_[::-1, :50], np.s_[:, :, None], np.s_[10:20, 5:90]],
    ids=str,
)
def test_large_strided_arrays_arrive_as_views_too(index: Any) -> None:
    array = np.arange(200 * 100, dtype="f8").reshape(200, 100)[index]
    serialized = serialize(array)
    assert [buffer.nbytes for buffer in serialized.buffers] == [array.nbytes]
    assert same(through_store(array), array)


def test_the_buffer_is_the_array_itself() -> None:
    array = np.zeros(100_000)
    assert np.shares_memory(np.frombuffer(serialize(array).buffers[0]), array)
    times = np.zeros(100_000, "M8[s]")
    assert np.shares_memory(np.frombuffer(serialize(times).buffers[0]), times)


@pytest.mark.parametrize("way", WAYS)
def test_object_arrays(way: Way) -> None:
    array = np.array([1, "a", None, [1, 2], np.arange(2000)], dtype=object)
    back = way(array)
    assert back.dtype == object
    assert list(back[:4]) == list(array[:4])
    assert same(back[4], array[4])
    back = way(np.full((30, 40), "text", dtype=object)[::2])
    assert back.shape == (15, 40)
    assert back[3, 3] == "text"


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("size", [3, 5000])
def test_subclasses_keep_their_type(way: Way, size: int) -> None:
    masked = np.ma.array(np.arange(size), mask=np.arange(size) % 2 == 0)
    back = way(masked)
    assert type(back) is np.ma.MaskedArray
    assert (back.mask == masked.mask).all()
    assert (back.filled(-1) == masked.filled(-1)).all()
    records = np.rec.array([(1, 2.0)] * size, dtype=[("a", "i4"), ("b", "f8")])
    back = way(records)
    assert type(back) is np.recarray
    assert back.b[0] == 2.0


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize(
    "scalar",
    [
        np.float64(1 / 3), np.float64("-inf"), np.float32(1 / 3), np.float16(0.1), np.int8(-3),
        np.uint64(2**64 - 1), np.int64(-(2**63)), np.bool_(True), np.complex64(1 + 2j),
        np.complex128(1e300j), np.longdouble("0.1"), np.datetime64("2024-01-02", "ns"),
        np.timedelta64(5, "s"), np.str_("x"), np.bytes_(b"y"),
    ],
    ids=repr,
)  # fmt: skip
def test_scalars(way: Way, scalar: Any) -> None:
    back = way(scalar)
    assert type(back) is type(scalar)
    assert back == scalar
    assert back.dtype == scalar.dtype
    assert back.tobytes() == scalar.tobytes()


def test_nan_scalars() -> None:
    assert np.isnan(in_message(np.float32("nan")))


def test_shared_arrays_are_sent_once() -> None:
    array = np.zeros(10_000)
    serialized = serialize([array, array])
    assert len(serialized.buffers) == 1
    first, second = deserialize(serialized.data, serialized.buffers)
    assert first is second


def test_dtypes_that_pickle_made_count_as_plain() -> None:
    import pickle

    copied = np.dtype("f8").newbyteorder("<").newbyteorder(">").newbyteorder("<")
    for dtype in (copied, pickle.loads(pickle.dumps(np.dtype("f8")))):
        array = np.arange(12.0).astype(dtype, copy=True)
        array = np.ndarray(array.shape, dtype, array.tobytes())
        assert same(in_message(array), array)


def test_dtype_metadata_survives() -> None:
    dtype = np.dtype("f8", metadata={"unit": "m"})
    array = np.ndarray((3,), dtype, np.arange(3.0).tobytes())
    assert in_message(array).dtype.metadata == {"unit": "m"}


def test_a_serializer_of_the_user_goes_before_ours(hooks: Hooks) -> None:
    hooks.register_serializer(np.ndarray, serializer=lambda a: a.shape, deserializer=list)
    assert in_message(np.zeros((3, 4)), hooks) == [3, 4]
    serialize(np.float64(1), hooks=hooks)  # now numpy's reducers are there
    assert in_message(np.zeros((3, 4)), hooks) == [3, 4]
    hooks.deregister_serializer(np.ndarray)
    assert same(in_message(np.zeros((3, 4)), hooks), np.zeros((3, 4)))
