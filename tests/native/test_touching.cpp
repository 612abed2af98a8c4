// Pages made ahead of reads: no byte changes, none is made beyond what may be touched, and nobody
// touches anything after the end.
#include "check.hpp"
#include "touching.hpp"

#include <cstring>
#include <sys/mman.h>
#include <thread>
#include <unistd.h>
#include <vector>

using namespace haversack;

namespace {

constexpr int64_t MIB = 1 << 20, MOST_BYTES = 32 * MIB;

// Memory as SlotMemory has it: addresses of which a part is usable.
struct Memory {
    Memory() : base(static_cast<uint8_t *>(map(nullptr, 0))) {}
    ~Memory() { munmap(base, MOST_BYTES); }
    static void *map(void *where, int fixed) {
        void *found = mmap(where, MOST_BYTES, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS | fixed, -1, 0);
        CHECK(found != MAP_FAILED);
        return found;
    }
    void drop() { map(base, MAP_FIXED); }
    void use(int64_t num_bytes) {
        CHECK(mprotect(base, num_bytes, PROT_READ | PROT_WRITE) == 0);
    }
    int64_t resident_bytes() const {
        const int64_t page_bytes = sysconf(_SC_PAGESIZE);
        std::vector<unsigned char> pages(MOST_BYTES / page_bytes);
        CHECK(mincore(base, MOST_BYTES, pages.data()) == 0);
        int64_t count = 0;
        for (auto page : pages) count += page & 1;
        return count * page_bytes;
    }
    uint8_t *base;
};

}  // namespace

TEST(bytes_written_meanwhile_stay) {
    Memory memory;
    memory.use(MOST_BYTES);
    Toucher toucher;
    toucher.set_memory(memory.base, MOST_BYTES);
    for (int64_t end = 4096; end <= MOST_BYTES; end += 4096) {
        toucher.follow(memory.base + end);
        std::memset(memory.base + end - 4096, end / 4096 % 251 + 1, 4096);
    }
    toucher.close();
    for (int64_t i = 0; i < MOST_BYTES; ++i) CHECK(memory.base[i] == (i / 4096 + 1) % 251 + 1);
}

TEST(a_gentle_toucher_makes_the_pages_as_well) {
    Memory memory;
    memory.use(MOST_BYTES);
    Toucher toucher;
    toucher.set_memory(memory.base, 8 * MIB);
    CHECK(toucher.made_bytes(memory.base) == 0 && toucher.s_per_byte() == 0);
    toucher.be_gentle(true);
    toucher.follow(memory.base + 4096);
    while (toucher.made_bytes(memory.base) < 8 * MIB) std::this_thread::yield();
    CHECK(toucher.made_bytes(memory.base + 4096) == 0);
    toucher.close();
    CHECK(memory.resident_bytes() == 8 * MIB && toucher.s_per_byte() > 0);
}

TEST(memory_may_go_when_it_is_withdrawn) {
    Memory memory;
    Toucher toucher;
    for (int round = 0; round < 50; ++round) {
        memory.use(MOST_BYTES / 2);
        toucher.set_memory(memory.base, MOST_BYTES / 2);
        toucher.follow(memory.base + MIB * (1 + round % 4));
        if (round % 2) std::this_thread::yield();
        toucher.set_memory(memory.base, 0);
        memory.drop();
        CHECK(memory.resident_bytes() == 0);
    }
    toucher.follow(memory.base + MIB);  // no part of it may be touched
    CHECK(memory.resident_bytes() == 0);
}

TEST(those_that_read_and_those_that_resize_do_not_disturb_each_other) {
    Memory memory, other;
    memory.use(MOST_BYTES);
    other.use(MOST_BYTES);
    Toucher toucher;
    toucher.set_memory(other.base, MOST_BYTES);
    std::vector<std::thread> readers;
    for (Memory *each : {&memory, &other})
        readers.emplace_back([each, &toucher] {
            for (int64_t end = MIB; end <= MOST_BYTES; end += MIB) toucher.follow(each->base + end);
        });
    for (int64_t num_bytes = MIB; num_bytes <= MOST_BYTES; num_bytes += MIB)
        toucher.set_memory(memory.base, num_bytes);
    for (auto &reader : readers) reader.join();
}

TEST(the_end_may_come_at_any_time) {
    for (int round = 0; round < 30; ++round) {
        Memory memory;
        memory.use(MOST_BYTES);
        Toucher toucher;
        toucher.set_memory(memory.base, MOST_BYTES);
        toucher.follow(memory.base + MIB);
        for (int i = 0; i < round; ++i) std::this_thread::yield();
        toucher.close();
        const int64_t held_bytes = memory.resident_bytes();
        toucher.follow(memory.base + 8 * MIB);
        toucher.set_memory(memory.base, MOST_BYTES);
        CHECK(memory.resident_bytes() == held_bytes);
    }
}
