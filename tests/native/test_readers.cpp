// Reads by threads, by a ring whose answers the test decides, and by the system's own ring.
#include "clock.hpp"
#include "reads.hpp"

#include <cerrno>
#include <thread>

using namespace haversack;

TEST(reads_of_any_size_bring_the_bytes_to_their_place) {
    for (Way way : EVERY_WAY) {
        Bench bench(way);
        const int direct = reopened_direct(bench.file);
        if (direct >= 0) bench.readers->add_file(direct, true, nullptr);
        std::minstd_rand random(way + 1);
        for (int round = 0; round < 5; ++round) {
            Wants wants = random_wants(random, 100, direct >= 0 ? 2 : 1);
            bench.submit(reads_of(wants));
            bench.wait(reads_of(wants));
            for (auto &wanted : wants) CHECK(wanted->is_whole());
        }
        CHECK(bench.readers->counts().num_reading == 0);
        CHECK(bench.readers->counts().busy_s > 0);
        bench.readers->close();
        if (direct >= 0) ::close(direct);
    }
}

TEST(the_end_of_a_file_is_told_from_its_last_bytes) {
    for (Way way : EVERY_WAY) {
        Bench bench(way);
        Wanted last(FILE_BYTES - 5000, 5000), behind(FILE_BYTES - 5000, 5001),
            outside(FILE_BYTES + PAGE_BYTES, 1);
        bench.finish(last), bench.finish(behind), bench.finish(outside);
        CHECK(last.is_whole());
        CHECK(behind.has_failed(FILE_ENDED) && behind.read.got == behind.read.need - 1);
        CHECK(outside.has_failed(FILE_ENDED) && outside.read.got == 0);
        CHECK(bench.readers->counts().bytes_read == 5000);
    }
}

TEST(bytes_that_come_in_pieces_are_put_together) {
    for (Way way : SCRIPTED) {
        Bench bench(way);
        faults::answer_reads(first({1, 4095, 100, 5000, 1}));
        Wanted plain(3 * PAGE_BYTES + 7, 40000);
        bench.finish(plain);
        CHECK(plain.is_whole());
        bench.readers->add_file(bench.file, true, nullptr);  // goes on at page starts alone
        faults::answer_reads(first({PAGE_BYTES, 3 * PAGE_BYTES + 512, 2 * PAGE_BYTES}));
        Wanted direct(9 * PAGE_BYTES + 7, 40000, 0, false, 1);
        bench.finish(direct);
        CHECK(direct.is_whole());
    }
}

TEST(an_error_of_the_drive_fails_its_read_alone) {
    for (Way way : SCRIPTED) {
        Bench bench(way, 1);
        faults::answer_reads(first({-EIO}));
        Wanted refused(1000, 30000), good(2000, 30000);
        bench.submit({&refused.read, &good.read});
        bench.wait({&refused.read, &good.read});
        CHECK(refused.has_failed(EIO) && refused.read.got == 0);
        CHECK(good.is_whole());
        faults::answer_reads(first({8000, -EIO}));
        Wanted half(PAGE_BYTES, 30000);
        bench.finish(half);
        CHECK(half.has_failed(EIO) && half.read.got == 8000);
    }
}

TEST(a_file_that_was_closed_fails_its_reads) {
    for (Way way : EVERY_WAY) {
        Bench bench(way);
        bench.readers->add_file(1 << 20, false, nullptr);
        Wanted wanted(0, 100, 0, false, 1);
        bench.finish(wanted);
        CHECK(wanted.has_failed(EBADF));
    }
}

TEST(what_interrupts_a_read_is_no_error_of_it) {
    for (Way way : SCRIPTED) {
        Bench bench(way);
        faults::answer_reads(way == THREADS ? first({-EINTR, 6000, -EINTR, -EINTR})
                                            : first({-EINTR, 6000, -EAGAIN, -ECANCELED, -EINTR}));
        Wanted wanted(1234, 30000);
        bench.finish(wanted);
        CHECK(wanted.is_whole());
    }
}

TEST(fewer_threads_than_asked_for_read_as_well) {
    faults::num_threads_left = 1;
    {
        Bench bench(THREADS, 4);
        faults::num_threads_left = -1;
        std::minstd_rand random(11);
        Wants wants = random_wants(random, 20);
        bench.submit(reads_of(wants));
        bench.wait(reads_of(wants));
        for (auto &wanted : wants) CHECK(wanted->is_whole());
    }
    faults::num_threads_left = 0;
    bool refused = false;
    try {
        Readers readers(4, 2, nullptr, false);
    } catch (const std::system_error &) {
        refused = true;
    }
    faults::num_threads_left = -1;
    CHECK(refused);
}

TEST(a_file_of_another_class_is_read_by_its_own_function) {
    Readers readers(
        2, 1,
        [](Read *read) -> int32_t {
            if (read->offset >= FILE_BYTES) return 1;
            for (int64_t i = 0; i < read->need; ++i) read->room[i] = byte_at(read->offset + i);
            return 0;
        },
        false);
    readers.add_file(-1, false, nullptr);
    Wanted good(5001, 3000, 11), bad(2 * FILE_BYTES, 5);
    std::vector<Read *> reads{&good.read, &bad.read};
    readers.submit(reads.data(), reads.size());
    CHECK(readers.wait(reads.data(), reads.size(), true, nullptr));
    CHECK(good.is_whole());
    CHECK(bad.has_failed(FOREIGN_ERROR));
}

TEST(a_read_under_way_is_not_cancelled_and_one_that_waits_is) {
    for (Way way : SCRIPTED) {
        Bench bench(way, 1);
        HeldReads held(way, bench);
        Wanted under_way(5, 5000), waits(6, 5000);
        bench.submit({&under_way.read, &waits.read});
        held.await(1);
        std::vector<Read *> both{&under_way.read, &waits.read};
        bench.readers->cancel(both.data(), 2);
        CHECK(waits.read.state == CANCELLED && under_way.read.state == READING);
        CHECK(bench.readers->wait(both.data(), 2, false, nullptr));  // any of them
        CHECK(bench.readers->counts().num_reading == 1);
        held.release();
        bench.readers->settle(both.data(), 2);
        CHECK(under_way.is_whole());
    }
}

TEST(a_wait_ends_when_its_caller_says_so) {
    for (Way way : SCRIPTED) {
        Bench bench(way);
        HeldReads held(way, bench);
        Wanted wanted(5, 5000);
        bench.submit(wanted);
        held.await(1);
        Read *read = &wanted.read;
        CHECK(!bench.readers->wait(&read, 1, true, [] { return true; }));
        CHECK(read->state == READING);
        held.release();
        bench.wait({read});
        CHECK(wanted.is_whole());
    }
}

TEST(who_waits_goes_on_with_the_read_it_waits_for) {
    Bench bench(THREADS, 2);
    Gate gate;
    faults::answer_reads([&](int file, void *room, size_t length, off_t offset) {
        if (offset == 0) gate.pass();
        return faults::read_truly(file, room, length, offset);
    });
    Wanted late(0, 5000), early(3 * PAGE_BYTES, 5000);
    bench.submit({&late.read, &early.read});
    std::thread other([&] { bench.wait({&late.read}); });
    bench.wait({&early.read});
    CHECK(early.is_whole() && !late.read.done());
    gate.open();
    other.join();
    CHECK(late.is_whole());
}

TEST(who_settles_drains_or_closes_waits_for_what_is_under_way) {
    using Act = void (*)(Readers &, Read *);
    const Act acts[] = {[](Readers &readers, Read *read) { readers.settle(&read, 1); },
                        [](Readers &readers, Read *) { readers.drain(); },
                        [](Readers &readers, Read *) { readers.close(); }};
    for (Way way : SCRIPTED) {
        for (Act act : acts) {
            Bench bench(way, 2);
            HeldReads held(way, bench);
            Wanted wanted(5, 5000);
            bench.submit(wanted);
            held.await(1);
            std::atomic<bool> ended{false};
            std::thread waits([&] {
                act(*bench.readers, &wanted.read);
                CHECK(wanted.read.done());
                ended = true;
            });
            CHECK(!ended);
            held.release();
            waits.join();
            CHECK(wanted.is_whole());
        }
    }
}

TEST(destroyed_readers_have_ended_every_read) {
    for (Way way : SCRIPTED) {
        Bench bench(way, 3);
        HeldReads held(way, bench);
        std::minstd_rand random(13);
        Wants wants = random_wants(random, 12);
        for (auto &wanted : wants) wanted->read.ahead = 0;
        bench.submit(reads_of(wants));
        held.await(3);
        std::thread deletes([&] { bench.readers.reset(); });
        held.release();
        deletes.join();
        int num_whole = 0;
        for (auto &wanted : wants) {
            CHECK(wanted->read.done());
            num_whole += wanted->is_whole();
        }
        CHECK(num_whole >= 3);
    }
}

TEST(a_read_that_comes_after_the_end_is_cancelled) {
    for (Way way : SCRIPTED) {
        Bench bench(way);
        bench.readers->close();
        Wanted wanted(5, 5000);
        bench.finish(wanted);
        CHECK(wanted.read.state == CANCELLED);
        bench.readers->close();
    }
}

TEST(demand_lets_a_read_ahead_of_others_begin) {
    for (Way way : SCRIPTED) {
        Bench bench(way, 1);
        HeldReads held(way, bench);
        Wanted first_one(0, 5000), ahead(1, 5000, 0, true), demanded(2, 5000, 0, true);
        bench.submit({&first_one.read, &ahead.read, &demanded.read});
        held.await(1);
        CHECK(bench.readers->counts().num_ahead == 2);
        Read *read = &demanded.read;
        bench.readers->demand(&read, 1);
        CHECK(bench.readers->counts().num_ahead == 1 && demanded.read.ahead == 0);
        held.release();
        bench.wait({&first_one.read, &ahead.read, &demanded.read});
        CHECK(demanded.is_whole() && ahead.is_whole());
    }
}

TEST(a_paced_file_gives_whole_reads_and_early_errors) {
    for (Way way : SCRIPTED) {
        Pace pace(1e9, 1e-4), slow(1e3, 0);  // a read of the second takes 8 s
        Bench bench(way, 4, &pace);
        std::minstd_rand random(17);
        Wants wants = random_wants(random, 30);
        const double began_s = now_s();
        bench.submit(reads_of(wants));
        bench.wait(reads_of(wants));
        for (auto &wanted : wants) CHECK(wanted->is_whole());
        CHECK(now_s() - began_s >= 1e-4);
        bench.readers->add_file(bench.file, false, &slow);
        faults::answer_reads(first({-EIO}));
        Wanted refused(0, 8000, 0, false, 1);
        bench.finish(refused);
        CHECK(refused.has_failed(EIO) && now_s() < refused.read.due_s);
    }
}

// Four threads do whatever they may, and drives fail at random. Reads that came are whole, the
// others failed or were cancelled; all end, also at the close.
static void do_anything(Bench &bench, int seed, std::atomic<int> &num_whole) {
    std::minstd_rand random(seed);
    for (int round = 0; round < 40; ++round) {
        Wants wants = random_wants(random, 8);
        std::vector<Read *> reads = reads_of(wants);
        Readers &readers = *bench.readers;
        readers.submit(reads.data(), reads.size());
        for (int step = random() % 4; step > 0; --step) {
            switch (random() % 8) {
                case 0:
                    readers.demand(reads.data(), reads.size());
                    break;
                case 1:
                    readers.cancel(reads.data() + 4, 4);
                    break;
                case 2:
                    readers.wait(reads.data(), reads.size(), false, nullptr);
                    break;
                case 3:
                    readers.drain();
                    break;
                default:
                    readers.counts();
            }
        }
        if (random() % 2) CHECK(readers.wait(reads.data(), reads.size(), true, nullptr));
        else readers.settle(reads.data(), reads.size());
        for (auto &wanted : wants) {
            CHECK(wanted->read.done());
            CHECK(!wanted->read.came() || wanted->is_whole());
            num_whole += wanted->read.came();
        }
    }
}

static void do_anything_at_once(Way way, Pace *pace) {
    Bench bench(way, 4, pace);
    std::atomic<unsigned> state{1};
    faults::answer_reads([&](int file, void *room, size_t length, off_t offset) -> ssize_t {
        const unsigned dice = state.fetch_add(1) * 2654435761u >> 24;
        if (dice < 8) return -EIO;
        if (dice < 40) return -EINTR;
        if (dice < 56 && way == FAKE_RING) return dice % 2 ? -EAGAIN : -ECANCELED;
        return faults::read_truly(file, room, dice < 100 ? 1 + length / 2 : length, offset);
    });
    if (bench.fake) bench.fake->holds = true;
    std::thread kernel([&] {
        for (int i = 0; bench.fake && bench.fake->holds; ++i) {
            if (i % 512 == 0) bench.fake->refusal = EBUSY, bench.fake->num_refusals = 2;
            bench.fake->most_taken = 1 + i % 3;
            bench.fake->await_held(1);
            bench.fake->serve(2);
        }
    });
    std::atomic<int> num_whole{0};
    std::vector<std::thread> threads;
    for (int seed = 1; seed <= 4; ++seed)
        threads.emplace_back([&, seed] { do_anything(bench, seed, num_whole); });
    threads[0].join();
    bench.readers->close();  // under the others' reads
    for (int i = 1; i < 4; ++i) threads[i].join();
    if (bench.fake) bench.fake->release();
    kernel.join();
    CHECK(num_whole > 0);
    CHECK(bench.readers->counts().num_reading == 0);
}

TEST(whatever_threads_do_at_once_every_read_ends) {
    Pace pace(4e9, 1e-5);
    for (Way way : EVERY_WAY) do_anything_at_once(way, nullptr);
    for (Way way : SCRIPTED) do_anything_at_once(way, &pace);
}
