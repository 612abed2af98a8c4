// Checksums of the same bytes in any pieces, from memory and from files.
#include "check.hpp"
#include "checksum.hpp"
#include "faults.hpp"

#include <cerrno>
#include <cstring>
#include <random>
#include <unistd.h>
#include <vector>

using namespace haversack;

namespace {

std::vector<uint8_t> random_bytes(size_t count) {
    std::minstd_rand random(5);
    std::vector<uint8_t> bytes(count);
    for (auto &byte : bytes) byte = static_cast<uint8_t>(random() >> 7);
    return bytes;
}

uint64_t digest_of(const std::vector<uint8_t> &bytes) {
    Checksum checksum{};
    checksum.add(bytes.data(), bytes.size());
    return checksum.digest();
}

// What a read gives, in any number of bytes; every third is interrupted before.
ssize_t in_pieces(int file, void *room, size_t length, off_t offset) {
    static int num_reads = 0;
    if (++num_reads % 3 == 0) return -EINTR;
    return faults::read_truly(file, room, (length + 4) / (2 + num_reads % 4), offset);
}

}  // namespace

TEST(pieces_do_not_change_a_checksum) {
    const std::vector<uint8_t> bytes = random_bytes(1000);
    std::minstd_rand random(7);
    for (int round = 0; round < 200; ++round) {
        Checksum checksum{};
        for (size_t at = 0; at < bytes.size();) {
            const size_t count = std::min<size_t>(random() % 150, bytes.size() - at);
            checksum.add(bytes.data() + at, count);
            at += count;
        }
        checksum.add(nullptr, 0);
        CHECK(checksum.digest() == digest_of(bytes));
    }
}

TEST(every_changed_bit_changes_the_checksum) {
    std::vector<uint8_t> bytes = random_bytes(200);
    const uint64_t digest = digest_of(bytes);
    for (size_t bit = 0; bit < 8 * bytes.size(); ++bit) {
        bytes[bit / 8] ^= 1 << bit % 8;
        CHECK(digest_of(bytes) != digest);
        bytes[bit / 8] ^= 1 << bit % 8;
    }
}

TEST(a_part_of_a_file_is_read_whole_or_its_fault_is_told) {
    const std::vector<uint8_t> bytes = random_bytes(300'000);
    FILE *file = std::tmpfile();
    CHECK(file && pwrite(fileno(file), bytes.data(), bytes.size(), 0) == ssize_t(bytes.size()));
    const auto add_file = [&](int64_t offset, int64_t count, uint64_t *digest = nullptr) {
        Checksum checksum{};
        const int32_t failed = checksum.add_file(fileno(file), offset, count);
        if (digest) *digest = checksum.digest();
        return failed;
    };
    uint64_t digest = 0;
    for (bool whole : {true, false}) {
        faults::answer_reads(whole ? faults::Answer() : in_pieces);
        CHECK(add_file(123, 299'000, &digest) == 0);
        CHECK(digest == digest_of({bytes.begin() + 123, bytes.begin() + 299'123}));
    }
    CHECK(add_file(123, 300'000) == Checksum::FILE_TOO_SHORT);
    faults::answer_reads([](int, void *, size_t, off_t) { return -EIO; });
    CHECK(add_file(0, 10) == -EIO);
    faults::answer_reads({});
    std::fclose(file);
}
