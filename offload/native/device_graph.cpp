#include "device_graph.hpp"

#include <cstring>

namespace haversack {

namespace {
constexpr size_t MOST_TENSORS = 64;  // of one graph
}

DeviceGraph::DeviceGraph(const Workspace &workspace, const ExpertsGraph &form,
                         Tensor *const *matrices, int32_t num_pairs, bool is_one_row)
    : workspace_(workspace), is_one_row_(is_one_row) {
    const int64_t used = is_one_row ? num_pairs : 1, rows = is_one_row ? 1 : num_pairs;
    for (const ExpertsGraph::Input &input : form.inputs) {
        const int64_t own = is_one_row && input.is_of_token ? 1 : used;
        inputs_.push_back(place(make_tensor(TYPE_F32, input.length, own, rows, nullptr)));
    }
    ids_ = place(make_tensor(TYPE_I32, used, rows, 1, nullptr));
    upload_bytes = used_bytes_;
    for (const ExpertsGraph::Step &step : form.steps) {
        Tensor made = ExpertsGraph::tensor_of(step, used, rows);
        if (!step.is_view()) {
            steps_.push_back(place(made));
            continue;
        }
        Tensor *source = steps_[step.sources[0].index];
        for (int axis = 1; axis < 4; axis++) made.nb[axis] = source->nb[axis];
        made.view_src = source->view_src ? source->view_src : source;
        made.view_offs = step.offset_bytes + source->view_offs;
        steps_.push_back(&tensors_.emplace_back(made));
        if (fits_) ggml().backend_view_init(steps_.back());
    }
    if (!fits_) return;
    upload = make_tensor(TYPE_F32, upload_bytes / sizeof(float), 1, 1, nullptr);
    char *base = (char *)ggml().backend_buffer_get_base(workspace.buffer.get());
    ggml().backend_tensor_alloc(workspace.buffer.get(), &upload, base);
    connect(form, matrices);
}

DeviceGraph::~DeviceGraph() {
    if (context_) ggml().free(context_);
}

// Give a tensor its place in the workspace, behind the ones before it.
Tensor *DeviceGraph::place(Tensor made) {
    Tensor *tensor = &tensors_.emplace_back(made);
    const size_t num_bytes = made.nb[2] * made.ne[2], start = used_bytes_;
    const size_t padded = num_bytes + workspace_.alignment - 1;
    used_bytes_ += padded - padded % workspace_.alignment;
    fits_ = fits_ && used_bytes_ <= workspace_.num_bytes;
    if (!fits_) return tensor;
    char *base = (char *)ggml().backend_buffer_get_base(workspace_.buffer.get());
    ggml().backend_tensor_alloc(workspace_.buffer.get(), tensor, base + start);
    return tensor;
}

void DeviceGraph::connect(const ExpertsGraph &form, Tensor *const *matrices) {
    for (size_t i = 0; i < form.steps.size(); i++)
        for (int place = 0; place < 3; place++) {
            const auto [kind, index] = form.steps[i].sources[place];
            if (kind == ExpertsGraph::STEP) steps_[i]->src[place] = steps_[index];
            if (kind == ExpertsGraph::INPUT) steps_[i]->src[place] = inputs_[index];
            if (kind == ExpertsGraph::MATRIX) steps_[i]->src[place] = matrices[index];
            if (kind == ExpertsGraph::IDS) steps_[i]->src[place] = ids_;
        }
    const size_t num_bytes = ggml().graph_overhead_custom(MOST_TENSORS, false) + 4096;
    memory_.reset(new char[num_bytes]);
    context_ = ggml().init({num_bytes, memory_.get(), true});
    graph = ggml().new_graph_custom(context_, MOST_TENSORS, false);
    result = steps_.back();
    ggml().build_forward_expand(graph, result);
}

void DeviceGraph::gather(const ExpertsGraph &form, const Choice &choice,
                         const std::vector<int32_t> &pairs, const std::vector<int32_t> &slots,
                         char *to) const {
    const char *base = (const char *)upload.data;
    for (size_t i = 0; i < inputs_.size(); i++) {
        const ExpertsGraph::Input &input = form.inputs[i];
        const size_t num_rows = is_one_row_ && input.is_of_token ? 1 : pairs.size();
        const size_t row_bytes = input.length * sizeof(float);
        char *rows = to + ((const char *)inputs_[i]->data - base);
        for (size_t row = 0; row < num_rows; row++)
            std::memcpy(rows + row * row_bytes, input.row(choice, pairs[row]), row_bytes);
    }
    std::memcpy(to + ((const char *)ids_->data - base), slots.data(), slots.size() * sizeof(int32_t));
}

}  // namespace haversack
