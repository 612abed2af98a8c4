// Joining nested copies reads and writes exactly the bytes of its blocks, and puts each bit in place.
#include "check.hpp"
#include "nested.hpp"

#include <vector>

using namespace haversack;

namespace {

struct Form {
    int32_t type;
    size_t base, rest, whole;  // bytes of a block
};

constexpr Form FORMS[] = {{12, 84, 80, 144}, {13, 84, 112, 176}, {14, 84, 146, 210}, {8, 20, 18, 34}};
constexpr size_t NUM_BLOCKS = 3;

// Vectors of their own, so that the address sanitizer sees each end.
std::vector<uint8_t> joined(const Form &form, std::vector<uint8_t> base, std::vector<uint8_t> rest) {
    std::vector<uint8_t> whole(form.whole * NUM_BLOCKS, 0xCD);
    CHECK(join_nested(form.type, base.data(), rest.data(), whole.data(), NUM_BLOCKS));
    return whole;
}

size_t num_differing_bits(const std::vector<uint8_t> &one, const std::vector<uint8_t> &other) {
    size_t count = 0;
    for (size_t i = 0; i < one.size(); i++) count += __builtin_popcount(one[i] ^ other[i]);
    return count;
}

}  // namespace

TEST(each_bit_of_a_rest_changes_the_original) {
    for (const Form &form : FORMS) {
        const std::vector<uint8_t> base(form.base * NUM_BLOCKS, 0x6B);
        std::vector<uint8_t> rest(form.rest * NUM_BLOCKS, 0x39);
        const std::vector<uint8_t> before = joined(form, base, rest);
        for (size_t bit = 0; bit < 8 * rest.size(); bit++) {
            rest[bit / 8] ^= 1 << bit % 8;
            const size_t count = num_differing_bits(before, joined(form, base, rest));
            CHECK(count == 1 || (form.type == 14 && count > 1));  // the sign of a scale of Q6_K
            rest[bit / 8] ^= 1 << bit % 8;
        }
    }
}

TEST(no_other_type_is_joined) {
    uint8_t byte = 0;
    for (int32_t type : {0, 1, 2, 3, 6, 7, 10, 11, 20, 39, -1, 1000})
        CHECK(!join_nested(type, &byte, &byte, &byte, 1));
}
