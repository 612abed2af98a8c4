// What devices/_native/own.py calls.
#include "openmp.hpp"
#include "checksum.hpp"
#include "nested.hpp"
#include "readers.hpp"
#include "system.hpp"

#include <system_error>

using namespace haversack;

#define API extern "C" __attribute__((visibility("default")))

API Readers *haversack_readers_new(int num_readers, int num_ahead, ReadInto read_into,
                                   bool with_ring) {
    try {
        return new Readers(num_readers, num_ahead, read_into, with_ring);
    } catch (const std::system_error &) {
        return nullptr;  // the system grants no thread
    }
}
API void haversack_readers_add_file(Readers *readers, int descriptor, bool direct, Pace *pace) {
    readers->add_file(descriptor, direct, pace);
}
API void haversack_readers_touch_ahead(Readers *readers, uint8_t *base, int64_t num_bytes) {
    readers->touch_ahead(base, num_bytes);
}
API Pace *haversack_pace_new(double bytes_s, double latency_s) {
    return new Pace(bytes_s, latency_s);
}
API double haversack_pace_admit(Pace *pace, int64_t num_bytes) { return pace->admit(num_bytes); }
API void haversack_pace_set_copies(Pace *pace, bool copies) { pace->copies = copies; }
API void haversack_pace_delete(Pace *pace) { delete pace; }
// The engine submits reads and waits for them itself; these two serve tests.
API void haversack_readers_submit(Readers *readers, Read *const *reads, size_t count) {
    readers->submit(reads, count);
}
API bool haversack_readers_wait(Readers *readers, Read *const *reads, size_t count, bool all,
                                Poll poll) {
    return readers->wait(reads, count, all, poll);
}
API void haversack_readers_counts(Readers *readers, Counts *counts) { *counts = readers->counts(); }
API void haversack_readers_close(Readers *readers) { readers->close(); }
API void haversack_readers_delete(Readers *readers) { delete readers; }

API int haversack_team_take_over(void *function) { return take_over_openmp(function); }

API void haversack_checksum_add(Checksum *checksum, const uint8_t *bytes, size_t count) {
    checksum->add(bytes, count);
}
API void haversack_checksum_pad(Checksum *checksum) { checksum->pad(); }
API int64_t haversack_read_at(int file, void *room, int64_t length, int64_t offset) {
    return read_at(file, room, length, offset);
}
API int32_t haversack_checksum_add_file(Checksum *checksum, int descriptor, int64_t offset,
                                        int64_t count) {
    return checksum->add_file(descriptor, offset, count);
}
API uint64_t haversack_checksum_digest(Checksum *checksum) { return checksum->digest(); }

API bool haversack_nested_join(int32_t type, const uint8_t *base, const uint8_t *rest, uint8_t *out,
                               size_t num_blocks) {
    return join_nested(type, base, rest, out, num_blocks);
}
