// Low copies of a model's experts: which experts have one, when they are wanted, and whether the bytes
// that were read are those that were written.
#pragma once

#include <utility>
#include <vector>

#include "layer.hpp"

namespace haversack {

// What the engine is told of them.
struct Precision {
    float low, skip;             // see Thresholds
    double batch_low_share;
    const uint64_t *digests;     // by layer and expert, 0 for an expert without a copy; null: all have one
    int32_t digests_per_layer;
    int32_t first_file;          // files from this one on hold records of low copies
};

class LowCopies {
  public:
    explicit LowCopies(const std::vector<Layer> &layers) : layers_(layers) {}
    void set(const Precision &precision);

    bool exist() const { return exist_; }
    bool has(int32_t layer, int32_t expert) const {
        return !has_digests() || digests_[layer * per_layer_ + expert] != 0;
    }
    // Whether a copy must have come whole before `is_whole` tells.
    bool has_digests() const { return !digests_.empty(); }
    // Whether the bytes of the expert's copy in `slot` are those of its record. If not, it has no copy
    // from now on, and the caller is told in `damaged`.
    bool is_whole(int32_t layer, int32_t expert, int32_t slot);

    Thresholds thresholds;
    double batch_low_share = 0;
    std::vector<std::pair<int32_t, int32_t>> damaged;  // layer, expert

  private:
    const std::vector<Layer> &layers_;
    bool exist_ = false;
    std::vector<uint64_t> digests_;
    int32_t per_layer_ = 0, first_file_ = 0;
};

}  // namespace haversack
