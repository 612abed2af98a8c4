// Low copies of a model's experts: which experts have one, when they are wanted, and whether the bytes
// that were read are those that were written.
#pragma once

#include <vector>

#include "layer.hpp"

namespace haversack {

// What the engine is told of them.
struct Precision {
    float low, skip;             // see Thresholds
    double batch_low_share;
    const uint64_t *digests;     // by layer and expert, 0 for an expert without a copy; null: all have one
    const uint64_t *rest_digests;  // the same of the rests of nested copies; null: copies are not nested
    int32_t digests_per_layer;
    int32_t first_file;          // files from this one on hold records of low copies
};

// A record of a file of low copies (quant/records.py).
enum Slice : int32_t { BASE = 0, REST = 1, NUM_SLICES = 2 };
struct Record {
    int32_t slice, layer, expert;
};

class LowCopies {
  public:
    explicit LowCopies(const std::vector<Layer> &layers) : layers_(layers) {}
    void set(const Precision &precision);

    bool exist() const { return exist_; }
    bool has(int32_t layer, int32_t expert) const {
        return !has_digests() || digests_[BASE][layer * per_layer_ + expert] != 0;
    }
    // Whether the HIGH copy is made of the LOW one and a rest.
    bool has_rest(int32_t layer, int32_t expert) const {
        return !digests_[REST].empty() && digests_[REST][layer * per_layer_ + expert] != 0;
    }
    // Whether a copy must have come whole before `is_whole` tells.
    bool has_digests() const { return !digests_[BASE].empty(); }
    // Whether the bytes of the record in `slot`, a LOW one or that of the rest's HIGH copy, are those
    // that were written. If not, there is no such record from now on, and the caller is told in
    // `damaged`.
    bool is_whole(Record record, int32_t slot);

    // Keep some of the weights (rows, used) of a layer's experts, until a sample is full.
    void sample(const float *weights, int64_t num_rows, int64_t num_used);

    Thresholds thresholds;
    std::vector<float> sampled;
    size_t sample_size = 0;  // in weights; 0 when no sample is wanted
    double batch_low_share = 0;
    std::vector<Record> damaged;

  private:
    const std::vector<Layer> &layers_;
    bool exist_ = false;
    std::vector<uint64_t> digests_[NUM_SLICES];
    int32_t per_layer_ = 0, first_file_ = 0;
};

}  // namespace haversack
