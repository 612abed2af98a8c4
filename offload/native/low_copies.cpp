#include "low_copies.hpp"

#include <algorithm>
#include <numeric>

#include "checksum.hpp"

namespace haversack {

void LowCopies::set(const Precision &precision) {
    exist_ = true;
    thresholds = {precision.low, precision.skip};
    batch_low_share = precision.batch_low_share;
    per_layer_ = precision.digests_per_layer;
    first_file_ = precision.first_file;
    const size_t count = layers_.size() * per_layer_;
    if (precision.digests) digests_[BASE].assign(precision.digests, precision.digests + count);
    if (precision.rest_digests)
        digests_[REST].assign(precision.rest_digests, precision.rest_digests + count);
}

// As quant/records.py has it: the slice, the layer and the expert name the record. Matrices of which
// there is nothing smaller are read from the model's own file, and are in no record.
bool LowCopies::is_whole(Record record, int32_t slot) {
    if (!has_digests()) return true;
    uint64_t &digest = digests_[record.slice][record.layer * per_layer_ + record.expert];
    Checksum checksum{};
    std::iota(checksum.lanes, checksum.lanes + Checksum::NUM_LANES, 1);
    checksum.add((const uint8_t *)&record, sizeof record);
    checksum.pad();
    const Layer &layer = layers_[record.layer];
    for (int32_t m = 0; m < layer.num_matrices; m++) {
        const Matrix &matrix = record.slice == BASE ? layer.matrices[LOW][m] : layer.rests[m];
        if (matrix.file >= first_file_) checksum.add(matrix.in_slot(slot), matrix.num_bytes);
    }
    const uint64_t found = checksum.digest();
    if ((found ? found : 1) == digest) return true;
    if (digest) damaged.push_back(record);
    digest = 0;
    return false;
}

// A few rows of each layer, so that a long prompt does not show its first layers alone.
void LowCopies::sample(const float *weights, int64_t num_rows, int64_t num_used) {
    constexpr int64_t MOST_ROWS = 16;
    const size_t count = std::min(num_rows, MOST_ROWS) * num_used;
    if (sampled.size() < sample_size) sampled.insert(sampled.end(), weights, weights + count);
}

}  // namespace haversack
