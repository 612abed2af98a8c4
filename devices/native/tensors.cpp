// Asks llama.cpp for the weights of a loaded model. Its function returns a C++ vector, which Python
// cannot receive.
#include <cstddef>
#include <string>
#include <utility>
#include <vector>

namespace {

// const std::vector<std::pair<std::string, ggml_tensor *>> &
// llama_internal_get_tensor_map(const llama_model * model)
using GetTensors = const std::vector<std::pair<std::string, void *>> &(*)(const void *model);

}  // namespace

// Put the addresses of the first `room` tensors into `tensors`. Returns how many there are.
extern "C" __attribute__((visibility("default"))) size_t
haversack_model_tensors(GetTensors get_tensors, const void *model, void **tensors, size_t room) {
    const auto &found = get_tensors(model);
    for (size_t i = 0; i < room && i < found.size(); i++) tensors[i] = found[i].second;
    return found.size();
}
