"""How the progress of clients is measured that read slowly, or still send after their answer."""

from kv.http.lingering import Discard, ReaderProgress

KIB = 1 << 10


class Transport:
    """Of which a client takes as much as the test says."""

    unsent_bytes = 0

    def get_write_buffer_size(self):
        return self.unsent_bytes

    def is_closing(self):
        return False

    def get_extra_info(self, name):
        return self

    def fileno(self):
        return -1


def test_a_reader_is_as_slow_as_it_was_in_the_last_window_whatever_it_was_before():
    transport, reader = Transport(), ReaderProgress()

    def slowness(now, unsent_kib, written_kib):
        transport.unsent_bytes = unsent_kib * KIB
        reader.look(now, transport, written_kib * KIB)
        return reader.slowness

    assert slowness(90.0, 0, 0) == 0
    assert slowness(100.0, 256, 256) == 0
    assert slowness(104.9, 256, 256) == 0
    assert slowness(105.0, 224, 256) == 10
    assert slowness(109.9, 224, 256) == 10
    assert slowness(110.0, 256, 256 + 352) == 1  # 320 KiB in 5 s, however little waits at any time
    assert slowness(115.0, 256, 256 + 352 + 100_000) < 0.01
    assert slowness(120.0, 255, 256 + 352 + 100_000) == 320
    assert slowness(121.0, 0, 256 + 352 + 100_000) == 0
    assert slowness(122.0, 256, 200_000) == 0


def test_a_reader_stalls_from_its_last_progress_on():
    transport, reader = Transport(), ReaderProgress()
    reader.look(1.0, transport, 1000)
    assert not reader.is_reading()
    assert reader.stalled_s(100.0) == 0
    transport.unsent_bytes = 500
    reader.look(2.0, transport, 1000)
    assert reader.is_reading()
    reader.look(5.0, transport, 1000)
    assert reader.stalled_s(6.0) == 4
    transport.unsent_bytes = 499
    reader.look(7.0, transport, 1000)
    assert reader.stalled_s(7.5) == 0.5


def test_discarding_ends_after_a_time_in_all_or_without_progress():
    discard = Discard(10.0)
    assert not discard.is_overdue(14.9, timeout_s=30.0, idle_s=5.0)
    assert discard.is_overdue(15.1, timeout_s=30.0, idle_s=5.0)
    for second in range(11, 41):
        discard.take(100, float(second))
    assert discard.bytes == 3000
    assert not discard.is_overdue(40.0, timeout_s=30.0, idle_s=5.0)
    assert discard.is_overdue(40.1, timeout_s=30.0, idle_s=5.0)
