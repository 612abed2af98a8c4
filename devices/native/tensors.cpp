// Asks llama.cpp for the weights of a loaded model. Its function returns a C++ vector, which Python
// cannot receive.
#include <cstddef>
#include <cstring>
#include <vector>

namespace {

// const std::vector<std::pair<std::string, ggml_tensor *>> &
// llama_internal_get_tensor_map(const llama_model * model)
// The size of a string is another one in each library of C++, so the pairs are read as bytes.
using GetTensors = const std::vector<char> &(*)(const void *model);

}  // namespace

// Put the addresses of the first `room` tensors into `tensors`; a pair takes `string_bytes` and the
// bytes of an address. Returns how many there are.
extern "C" __attribute__((visibility("default"))) size_t
haversack_model_tensors(GetTensors get_tensors, const void *model, size_t string_bytes,
                        void **tensors, size_t room) {
    const std::vector<char> &pairs = get_tensors(model);
    const size_t pair_bytes = string_bytes + sizeof *tensors;
    const size_t count = pairs.size() / pair_bytes;
    for (size_t i = 0; i < room && i < count; i++)
        std::memcpy(&tensors[i], &pairs[i * pair_bytes + string_bytes], sizeof *tensors);
    return count;
}
