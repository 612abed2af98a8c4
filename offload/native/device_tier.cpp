#include "device_tier.hpp"

#include <algorithm>
#include <cstring>

#include "clock.hpp"

namespace haversack {

namespace {

constexpr int32_t KEPT_PAIRS = 16;  // graphs of more pairs are made anew for each batch
constexpr size_t LEAST_ALIGNMENT = 64;
constexpr int64_t LINK_TRIAL_BYTES = 1024 * 1024;
constexpr double LEAST_WAITED = 0.5;  // of the time taken: a shorter wait may not tell when it was done

}  // namespace

DeviceTier::DeviceTier(Device *device, int64_t workspace_bytes, int32_t num_staging)
    : num_staging(num_staging), device_(device), upload_(device), results_(device) {
    backend_ = call_device([&] { return DeviceBackend(ggml().backend_dev_init(device, nullptr)); });
    if (!backend_) throw DeviceError{};
    BufferType *type = ggml().backend_dev_buffer_type(device);
    workspace_.alignment = std::max(LEAST_ALIGNMENT, ggml().backend_buft_get_alignment(type));
    workspace_.num_bytes = workspace_bytes;
    workspace_.buffer = make_device_buffer(device, workspace_bytes);
    if (!workspace_.buffer) throw DeviceError{};
}

// ---------------------------------------------------------------------- slots
bool DeviceTier::add_pool(std::shared_ptr<ExpectedUse> rule,
                          const std::vector<const Layer *> &layers, int32_t num_slots) {
    PoolThere &pool = pools_.emplace_back();
    if (num_slots == 0) return true;
    for (int32_t m = 0; m < layers[0]->num_matrices; m++) {
        size_t num_bytes = 0;
        BufferType *type = ggml().backend_dev_buffer_type(device_);
        for (const Layer *layer : layers) {
            Tensor *tensor = tensor_of(pool, layer->matrices[HIGH][m], num_slots + num_staging);
            pool.layers[layer->number].of_layer[m] = tensor;
            num_bytes = std::max(num_bytes, ggml().backend_buft_get_alloc_size(type, tensor));
        }
        pool.buffers.push_back(make_device_buffer(device_, num_bytes));
        if (!pool.buffers.back()) return false;
        Buffer *buffer = pool.buffers.back().get();
        ggml().backend_buffer_set_usage(buffer, USAGE_WEIGHTS);
        for (Tensor &tensor : pool.tensors)
            if (!tensor.buffer)
                ggml().backend_tensor_alloc(buffer, &tensor, ggml().backend_buffer_get_base(buffer));
    }
    pool.slots = std::make_unique<Slots>(std::move(rule), HIGH, num_slots, 0);
    return num_staging == 0 || measure_link(*layers[0]);
}

// The second of two copies counts: the first one wakes up the link.
bool DeviceTier::measure_link(const Layer &layer) {
    const std::vector<char> zeros(std::min(LINK_TRIAL_BYTES, layer.matrices[HIGH][0].num_bytes));
    double taken_s = 0;
    for (int time = 0; time < 2; time++) {
        const double began_s = now_s();
        if (!write(layer, 0, staging_slot(layer.pool, 0), zeros.data(), 0, zeros.size())) return false;
        taken_s = now_s() - began_s;
    }
    batch_costs.note_copy(zeros.size(), taken_s);
    return true;
}

// Layers of a pool whose matrices have the same form share a tensor.
Tensor *DeviceTier::tensor_of(PoolThere &pool, const Matrix &matrix, int32_t num_slots) const {
    for (Tensor &tensor : pool.tensors)
        if (!tensor.buffer && tensor.type == matrix.type && tensor.ne[0] == matrix.num_inputs &&
            tensor.ne[1] == matrix.num_rows)
            return &tensor;
    return &pool.tensors.emplace_back(
        make_tensor(matrix.type, matrix.num_inputs, matrix.num_rows, num_slots, nullptr));
}

int32_t DeviceTier::find(const Layer &layer, int32_t expert) const {
    const Slots *slots = pools_[layer.pool].slots.get();
    const int32_t slot = slots && !state.is_lost ? slots->find(layer.row, expert) : NOWHERE;
    return slot != NOWHERE && slots->is_ready(slot) ? slot : NOWHERE;
}

const char *DeviceTier::fault(int32_t pool, int32_t num_moving) const {
    const Slots *slots = pools_[pool].slots.get();
    if (!slots) return nullptr;
    if (state.is_lost && slots->num_used() > 0) return "a lost device holds experts";
    if (slots->num_slots() - slots->num_unpinned() != num_moving)
        return "a device's slot is pinned for no promotion";
    return slots->fault();
}

template <typename Call>
bool DeviceTier::copy(const Layer &layer, int32_t matrix, Call call) {
    Tensor *tensor = pools_[layer.pool].layers.at(layer.number).of_layer[matrix];
    std::lock_guard<std::mutex> lock(calls_);
    try {
        call_device([&] { call(tensor); });
        return true;
    } catch (const DeviceError &) {
        has_failed = true;
        return false;
    }
}

bool DeviceTier::write(const Layer &layer, int32_t matrix, int32_t slot, const void *from,
                       int64_t offset, int64_t num_bytes) {
    return copy(layer, matrix, [&](Tensor *tensor) {
        ggml().backend_tensor_set(tensor, from, slot * tensor->nb[2] + offset, num_bytes);
    });
}

bool DeviceTier::read(const Layer &layer, int32_t matrix, int32_t slot, void *to, int64_t offset,
                      int64_t num_bytes) {
    return copy(layer, matrix, [&](Tensor *tensor) {
        ggml().backend_tensor_get(tensor, to, slot * tensor->nb[2] + offset, num_bytes);
    });
}

// --------------------------------------------------------------------- graphs
int32_t DeviceTier::most_pairs(const ExpertsGraph &form) const {
    const int64_t padding = (form.steps.size() + form.inputs.size() + 1) * workspace_.alignment;
    const int64_t room = (int64_t)workspace_.num_bytes - padding;
    return static_cast<int32_t>(std::max<int64_t>(0, room / form.pair_bytes()));
}

DeviceGraph *DeviceTier::graph_of(const Layer &layer, const ExpertsGraph &form, int32_t num_pairs,
                                  bool is_one_row) {
    Graphs &graphs = graphs_[{layer.number, form.first_matrix()}];
    if (!form.is_like(graphs.form)) {
        graphs.by_pairs.clear();
        graphs.form = form;
    }
    if (num_pairs > KEPT_PAIRS)
        graphs.by_pairs.erase(graphs.by_pairs.lower_bound({KEPT_PAIRS + 1, false}),
                              graphs.by_pairs.end());
    auto &graph = graphs.by_pairs[{num_pairs, is_one_row}];
    Tensor *const *matrices = pools_[layer.pool].layers.at(layer.number).of_layer;
    if (!graph)
        graph = std::make_unique<DeviceGraph>(workspace_, form, matrices, num_pairs, is_one_row);
    return graph->fits() ? graph.get() : nullptr;
}

void DeviceTier::reserve(const ExpertsGraph &form, size_t num_pairs) {
    call_device([&] { results_.bytes(num_pairs * form.result->ne[0] * sizeof(float)); });
}

bool DeviceTier::start(const Layer &layer, const ExpertsGraph &form, const Choice &choice,
                       const std::vector<int32_t> &pairs, const std::vector<int32_t> &slots) {
    std::lock_guard<std::mutex> lock(calls_);
    return call_device([&] {
        is_one_row_ = choice.num_rows == 1;
        DeviceGraph *graph = graph_of(layer, form, pairs.size(), is_one_row_);
        if (!graph) return false;
        char *upload = upload_.bytes(graph->upload_bytes);
        graph->gather(form, choice, pairs, slots, upload);
        Backend *backend = backend_.get();
        pairs_.insert(pairs_.end(), pairs.begin(), pairs.end());
        running_ = graph;
        is_computing_ = true;
        began_s_ = now_s();
        ggml().backend_tensor_set_async(backend, &graph->upload, upload, 0, graph->upload_bytes);
        if (ggml().backend_graph_compute_async(backend, graph->graph) != SUCCESS) throw DeviceError{};
        if (backend->get_tensor_async) fetch();
        return true;
    });
}

// Have the results of the graph that runs copied behind those that are there.
void DeviceTier::fetch() {
    const size_t row_bytes = running_->result->nb[1], first = num_waited_ * row_bytes;
    const size_t num_bytes = pairs_.size() * row_bytes;
    char *results = results_.bytes(num_bytes);
    ggml().backend_tensor_get_async(backend_.get(), running_->result, results + first, 0,
                                    num_bytes - first);
}

void DeviceTier::wait() {
    std::lock_guard<std::mutex> lock(calls_);
    call_device([&] {
        const double ready_s = now_s();
        if (!backend_->get_tensor_async) fetch();
        ggml().backend_synchronize(backend_.get());
        const double ended_s = now_s();
        const int32_t num_pairs = pairs_.size() - num_waited_;
        if (is_one_row_) costs.note_device(num_pairs, ended_s - began_s_, ended_s - ready_s);
        else if (ended_s - ready_s >= LEAST_WAITED * (ended_s - began_s_))
            batch_costs.note_device(num_pairs, ended_s - began_s_);
    });
    num_waited_ = pairs_.size();
    is_computing_ = false;
}

void DeviceTier::collect(Tensor *result, const Choice &choice) {
    const size_t row_bytes = result->ne[0] * sizeof(float);
    const char *results = results_.bytes(0);
    for (size_t i = 0; i < pairs_.size(); i++)
        std::memcpy(result->row(pairs_[i] % choice.num_used, pairs_[i] / choice.num_used),
                    results + i * row_bytes, row_bytes);
    forget();
}

void DeviceTier::abandon() {
    if (is_running()) call_device([&] { ggml().backend_synchronize(backend_.get()); });
    forget();
}

void DeviceTier::forget() {
    pairs_.clear();
    num_waited_ = 0;
    is_computing_ = false;
}

void DeviceTier::lose() {
    forget();
    state.is_lost = true;
    for (PoolThere &pool : pools_)
        if (pool.slots) {
            pool.slots->recover();
            for (int32_t slot = 0; slot < pool.slots->num_slots(); slot++) pool.slots->drop(slot);
        }
}

}  // namespace haversack
