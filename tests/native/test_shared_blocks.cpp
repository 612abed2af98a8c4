// Dot products that share a weight's blocks between rows: the bits of single rows, and no byte beyond
// the weight and the rows is read.
#include "check.hpp"
#include "shared_blocks.hpp"

#include <cstring>
#include <memory>
#include <random>
#include <vector>

using namespace haversack;

namespace {

struct Type {
    int32_t number;
    size_t weight_bytes, input_bytes;  // of 256 numbers
};
const Type TYPES[] = {{0, 1024, 1024}, {1, 512, 512}, {30, 512, 512}, {12, 144, 292}, {14, 210, 292}};

// Small bytes make finite numbers of whatever type reads them. Each array ends where its block does,
// so that the address sanitizer sees what is read behind it.
std::unique_ptr<char[]> random_bytes(std::minstd_rand &random, size_t count) {
    std::unique_ptr<char[]> bytes(new char[count]);
    for (size_t i = 0; i < count; ++i) bytes[i] = static_cast<char>(random() % 0x3C);
    return bytes;
}

}  // namespace

TEST(rows_together_have_the_bits_of_each_alone) {
    std::minstd_rand random(3);
    for (const Type &type : TYPES) {
        const SharedDot dot = shared_dot(type.number);
        if (!dot) continue;  // not on this processor
        for (int64_t num_blocks : {1, 2, 5}) {
            const auto weight = random_bytes(random, num_blocks * type.weight_bytes);
            std::vector<std::unique_ptr<char[]>> rows;
            std::vector<const char *> inputs;
            std::vector<float> alone;
            for (int row = 0; row < 7; ++row) {
                rows.push_back(random_bytes(random, num_blocks * type.input_bytes));
                inputs.push_back(rows.back().get());
                dot(256 * num_blocks, weight.get(), &inputs.back(), &alone.emplace_back(), 1);
            }
            for (int count = 1; count <= 7; ++count) {
                std::vector<float> together(count);
                dot(256 * num_blocks, weight.get(), inputs.data(), together.data(), count);
                CHECK(!std::memcmp(together.data(), alone.data(), count * sizeof(float)));
            }
        }
    }
}

TEST(a_type_that_is_not_known_has_none) {
    CHECK(!shared_dot(2));
    CHECK(!shared_dot(-1));
}
