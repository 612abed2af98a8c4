#include "low_copies.hpp"

#include <numeric>

#include "checksum.hpp"

namespace haversack {

void LowCopies::set(const Precision &precision) {
    exist_ = true;
    thresholds = {precision.low, precision.skip};
    batch_low_share = precision.batch_low_share;
    per_layer_ = precision.digests_per_layer;
    first_file_ = precision.first_file;
    if (precision.digests)
        digests_.assign(precision.digests, precision.digests + layers_.size() * per_layer_);
}

// As quant/records.py has it: the slice, the layer and the expert name the record. Matrices of which
// there is nothing smaller are read from the model's own file, and are in no record.
bool LowCopies::is_whole(int32_t layer, int32_t expert, int32_t slot) {
    if (!has_digests()) return true;
    uint64_t &digest = digests_[layer * per_layer_ + expert];
    const uint32_t record[] = {0, (uint32_t)layer, (uint32_t)expert};
    Checksum checksum{};
    std::iota(checksum.lanes, checksum.lanes + Checksum::NUM_LANES, 1);
    checksum.add((const uint8_t *)record, sizeof record);
    checksum.pad();
    for (int32_t m = 0; m < layers_[layer].num_matrices; m++) {
        const Matrix &matrix = layers_[layer].matrices[LOW][m];
        if (matrix.file >= first_file_) checksum.add(matrix.in_slot(slot), matrix.num_bytes);
    }
    const uint64_t found = checksum.digest();
    if ((found ? found : 1) == digest) return true;
    if (digest) damaged.emplace_back(layer, expert);
    digest = 0;
    return false;
}

}  // namespace haversack
