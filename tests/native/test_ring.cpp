// A kernel that refuses, delays or cannot do what the ring asks of it.
#include "reads.hpp"

#include <cerrno>

using namespace haversack;

TEST(more_reads_than_a_ring_is_deep_are_under_way) {
    for (Way way : {FAKE_RING, SYSTEM_RING}) {
        Bench bench(way, 500);
        std::minstd_rand random(3);
        Wants wants = random_wants(random, 400);
        bench.submit(reads_of(wants));
        bench.wait(reads_of(wants));
        for (auto &wanted : wants) CHECK(wanted->is_whole());
    }
}

TEST(a_kernel_short_of_memory_gets_the_reads_later) {
    for (int error : {EAGAIN, EBUSY, ENOMEM, EINTR}) {
        Bench bench(FAKE_RING);
        bench.fake->refusal = error, bench.fake->num_refusals = 5;
        std::minstd_rand random(error);
        Wants wants = random_wants(random, 20);
        bench.submit(reads_of(wants));
        bench.wait(reads_of(wants));
        for (auto &wanted : wants) CHECK(wanted->is_whole());
    }
}

TEST(a_kernel_that_takes_no_read_at_all_fails_them) {
    for (int error : {EBADF, EPERM, ENOSYS}) {
        Bench bench(FAKE_RING);
        bench.fake->refusal = error, bench.fake->num_refusals = 1 << 30;
        Wants wants;
        for (int i = 0; i < 9; ++i) wants.push_back(std::make_unique<Wanted>(1000 * i, 5000));
        bench.submit(reads_of(wants));
        bench.wait(reads_of(wants));
        for (auto &wanted : wants) CHECK(wanted->has_failed(error));
        bench.fake->num_refusals = 0;
        Wanted later(77, 5000);
        bench.finish(later);
        CHECK(later.is_whole());
    }
}

TEST(memory_that_stays_short_fails_the_reads_that_wait_for_it) {
    Bench bench(FAKE_RING);
    bench.fake->refusal = ENOMEM, bench.fake->num_refusals = 1 << 30;
    Wanted wanted(0, 5000), next(0, 5000);
    bench.submit(wanted);
    Read *read = &wanted.read;
    while (!read->done()) bench.readers->demand(&read, 1);  // each offers it to the kernel again
    CHECK(wanted.has_failed(ENOMEM));
    bench.fake->num_refusals = 0;
    bench.finish(next);
    CHECK(next.is_whole());
}

TEST(a_kernel_may_take_a_part_of_what_is_queued) {
    Bench bench(FAKE_RING, 8);
    bench.fake->refusal = EBUSY, bench.fake->num_refusals = 1, bench.fake->most_taken = 1;
    std::minstd_rand random(5);
    Wants wants = random_wants(random, 30);
    bench.submit(reads_of(wants));
    bench.wait(reads_of(wants));
    for (auto &wanted : wants) CHECK(wanted->is_whole());
}

TEST(without_a_usable_ring_threads_read) {
    const auto read_without = [](auto spoil) {
        FakeRing fake;
        spoil(fake);
        const int file = write_file();
        Readers readers(2, 1, nullptr, true);
        CHECK(!readers.by_ring());
        CHECK(fake.descriptor() < 0 || fcntl(fake.descriptor(), F_GETFD) < 0);  // it was closed
        readers.add_file(file, false, nullptr);
        Wanted wanted(99, 5000);
        Read *read = &wanted.read;
        readers.submit(&read, 1);
        CHECK(readers.wait(&read, 1, true, nullptr));
        CHECK(wanted.is_whole());
        ::close(file);
    };
    read_without([](FakeRing &fake) { fake.setup_error = ENOSYS; });
    read_without([](FakeRing &fake) { fake.setup_error = EPERM; });
    read_without([](FakeRing &fake) { fake.features &= ~IORING_FEAT_EXT_ARG; });
    read_without([](FakeRing &fake) { fake.num_maps_left = 0; });
    read_without([](FakeRing &fake) { fake.num_maps_left = 1; });
}
