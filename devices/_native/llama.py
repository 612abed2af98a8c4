"""The binding to libllama: the structures and functions that haversack uses, with C's names.

Their layouts are those of the build that was chosen, see `builds`.
"""

import ctypes as c
import sys
from typing import Any

from haversack.devices._native import (
    Address,
    CFunction,
    SetTensorData,
    chosen,
    ggml_graph_size,
    llama_function,
)
from haversack.devices._native.libraries import prototype

_library = chosen.libraries.llama
_A, _S, _L, _B, _Q = Address, c.c_char_p, c.c_int32, c.c_bool, c.c_size_t
_F = c.c_float

# ---------------------------------------------------------------------- types
llama_token = c.c_int32
LLAMA_FLASH_ATTN_TYPE_ENABLED = 1  # enum llama_flash_attn_type

# bool (*llama_progress_callback)(float progress, void * user_data)
llama_progress_callback = CFunction(_B, _F, _A)
# bool (*ggml_backend_sched_eval_callback)(struct ggml_tensor * t, bool ask, void * user_data)
ggml_backend_sched_eval_callback = CFunction(_B, _A, _B, _A)
# bool (*ggml_abort_callback)(void * data)
ggml_abort_callback = CFunction(_B, _A)
# void (*ggml_log_callback)(enum ggml_log_level level, const char * text, void * user_data)
llama_log_callback = CFunction(None, c.c_int, _S, _A)


class llama_model_params(c.Structure):
    """struct llama_model_params"""

    _fields_ = (
        ("devices", _A),
        ("tensor_buft_overrides", _A),
        ("n_gpu_layers", _L),
        *((name, c.c_int) for name in ("split_mode", "load_mode", "lazy_mode")),
        ("main_gpu", _L),
        ("tensor_split", _A),
        ("progress_callback", llama_progress_callback),
        ("progress_callback_user_data", _A),
        ("kv_overrides", _A),
        *((name, _B) for name in ("vocab_only", "check_tensors", "use_extra_bufts")),
        *((name, _B) for name in ("no_host", "no_alloc", "load_mtp")),
    )


class llama_context_params(c.Structure):
    """struct llama_context_params"""

    _fields_ = (
        *((name, c.c_uint32) for name in ("n_ctx", "n_batch", "n_ubatch", "n_seq_max")),
        *((name, c.c_uint32) for name in ("n_rs_seq", "n_outputs_max", "n_outputs_max_per_seq")),
        *((name, _L) for name in ("n_threads", "n_threads_batch")),
        *((name, c.c_int) for name in ("ctx_type", "rope_scaling_type", "pooling_type")),
        *((name, c.c_int) for name in ("attention_type", "flash_attn_type")),
        *((name, _F) for name in ("rope_freq_base", "rope_freq_scale", "yarn_ext_factor")),
        *((name, _F) for name in ("yarn_attn_factor", "yarn_beta_fast", "yarn_beta_slow")),
        ("yarn_orig_ctx", c.c_uint32),
        ("defrag_thold", _F),
        ("cb_eval", ggml_backend_sched_eval_callback),
        ("cb_eval_user_data", _A),
        *((name, c.c_int) for name in ("type_k", "type_v")),
        *([("moe_cache_size", _Q)] if chosen.build.has_moe_cache_size else []),
        ("abort_callback", ggml_abort_callback),
        ("abort_callback_data", _A),
        *((name, _B) for name in ("embeddings", "offload_kqv", "no_perf", "op_offload")),
        *((name, _B) for name in ("swa_full", "kv_unified")),
        ("samplers", _A),
        ("n_samplers", _Q),
        ("ctx_other", _A),
    )


class llama_batch(c.Structure):
    """struct llama_batch"""

    _fields_ = (
        ("n_tokens", _L),
        ("token", c.POINTER(llama_token)),
        ("embd", c.POINTER(_F)),
        ("pos", c.POINTER(_L)),
        ("n_seq_id", c.POINTER(_L)),
        ("seq_id", c.POINTER(c.POINTER(_L))),
        ("logits", c.POINTER(c.c_int8)),
    )


class llama_token_data(c.Structure):
    """struct llama_token_data"""

    _fields_ = (("id", llama_token), ("logit", _F), ("p", _F))


class llama_token_data_array(c.Structure):
    """struct llama_token_data_array"""

    _fields_ = (
        ("data", c.POINTER(llama_token_data)),
        ("size", _Q),
        ("selected", c.c_int64),
        ("sorted", _B),
    )


class llama_sampler_chain_params(c.Structure):
    """struct llama_sampler_chain_params"""

    _fields_ = (("no_perf", _B),)


# ----------------------------------------------------------------- prototypes
def _function(name: str, result: Any, *arguments: Any) -> Any:
    return prototype(_library, name, result, *arguments)


# void llama_backend_init(void)
llama_backend_init = _function("llama_backend_init", None)
# void llama_log_set(ggml_log_callback log_callback, void * user_data)
llama_log_set = _function("llama_log_set", None, llama_log_callback, _A)
# const char * llama_print_system_info(void)
llama_print_system_info = _function("llama_print_system_info", _S)

# size_t llama_max_devices(void)
llama_max_devices = _function("llama_max_devices", _Q)
# struct llama_model_params llama_model_default_params(void)
llama_model_default_params = _function("llama_model_default_params", llama_model_params)
# struct llama_model * llama_model_load_from_file(const char * path, struct llama_model_params)
llama_model_load_from_file = _function("llama_model_load_from_file", _A, _S, llama_model_params)
# struct llama_model * llama_model_init_from_user(gguf, set_tensor_data, void * ud, params)
llama_model_init_from_user = _function(
    "llama_model_init_from_user", _A, _A, SetTensorData, _A, llama_model_params
)
# void llama_model_save_to_file(const struct llama_model * model, const char * path_model)
llama_model_save_to_file = _function("llama_model_save_to_file", None, _A, _S)
# void llama_model_free(struct llama_model * model)
llama_model_free = _function("llama_model_free", None, _A)
# int32_t llama_model_n_ctx_train(const struct llama_model * model), and others of that kind
llama_model_n_ctx_train = _function("llama_model_n_ctx_train", _L, _A)
llama_model_n_swa = _function("llama_model_n_swa", _L, _A)
llama_model_meta_count = _function("llama_model_meta_count", _L, _A)
# bool llama_model_is_recurrent(const struct llama_model * model), and others of that kind
llama_model_is_recurrent = _function("llama_model_is_recurrent", _B, _A)
llama_model_is_hybrid = _function("llama_model_is_hybrid", _B, _A)
llama_model_is_diffusion = _function("llama_model_is_diffusion", _B, _A)
llama_model_has_encoder = _function("llama_model_has_encoder", _B, _A)
llama_model_has_decoder = _function("llama_model_has_decoder", _B, _A)
# const char * llama_model_chat_template(const struct llama_model * model, const char * name)
llama_model_chat_template = _function("llama_model_chat_template", _S, _A, _S)
# int32_t llama_model_meta_key_by_index(model, int32_t i, char * buf, size_t buf_size)
llama_model_meta_key_by_index = _function("llama_model_meta_key_by_index", _L, _A, _L, _S, _Q)

# const struct llama_vocab * llama_model_get_vocab(const struct llama_model * model)
llama_model_get_vocab = _function("llama_model_get_vocab", _A, _A)
# int32_t llama_vocab_n_tokens(const struct llama_vocab * vocab)
llama_vocab_n_tokens = _function("llama_vocab_n_tokens", _L, _A)
# enum llama_vocab_type llama_vocab_type(const struct llama_vocab * vocab)
llama_vocab_type = _function("llama_vocab_type", c.c_int, _A)
# llama_token llama_vocab_bos(const struct llama_vocab * vocab)
llama_vocab_bos = _function("llama_vocab_bos", llama_token, _A)
# llama_token llama_vocab_eos(const struct llama_vocab * vocab)
llama_vocab_eos = _function("llama_vocab_eos", llama_token, _A)
# bool llama_vocab_get_add_bos(const struct llama_vocab * vocab)
llama_vocab_get_add_bos = _function("llama_vocab_get_add_bos", _B, _A)
# bool llama_vocab_is_eog(const struct llama_vocab * vocab, llama_token token)
llama_vocab_is_eog = _function("llama_vocab_is_eog", _B, _A, llama_token)

# struct llama_context_params llama_context_default_params(void)
llama_context_default_params = _function("llama_context_default_params", llama_context_params)
# struct llama_context * llama_init_from_model(struct llama_model *, struct llama_context_params)
llama_init_from_model = _function("llama_init_from_model", _A, _A, llama_context_params)
# void llama_free(struct llama_context * ctx)
llama_free = _function("llama_free", None, _A)
# uint32_t llama_n_batch(const struct llama_context * ctx)
llama_n_batch = _function("llama_n_batch", c.c_uint32, _A)
# int32_t llama_n_threads(struct llama_context * ctx), and for batches
llama_n_threads = _function("llama_n_threads", _L, _A)
llama_n_threads_batch = _function("llama_n_threads_batch", _L, _A)
# bool llama_get_causal_attn(const struct llama_context * ctx)
llama_get_causal_attn = _function("llama_get_causal_attn", _B, _A)
# void llama_set_abort_callback(ctx, ggml_abort_callback abort_callback, void * data)
llama_set_abort_callback = _function("llama_set_abort_callback", None, _A, ggml_abort_callback, _A)
# struct llama_batch llama_batch_get_one(llama_token * tokens, int32_t n_tokens)
llama_batch_get_one = _function("llama_batch_get_one", llama_batch, c.POINTER(llama_token), _L)
# int32_t llama_decode(struct llama_context * ctx, struct llama_batch batch)
llama_decode = _function("llama_decode", _L, _A, llama_batch)
# float * llama_get_logits_ith(struct llama_context * ctx, int32_t i)
llama_get_logits_ith = _function("llama_get_logits_ith", _A, _A, _L)
# void llama_set_embeddings(struct llama_context * ctx, bool embeddings)
llama_set_embeddings = _function("llama_set_embeddings", None, _A, _B)
# float * llama_get_embeddings_ith(struct llama_context * ctx, int32_t i)
llama_get_embeddings_ith = _function("llama_get_embeddings_ith", _A, _A, _L)
# int32_t llama_model_n_layer(const struct llama_model * model)
llama_model_n_layer = _function("llama_model_n_layer", _L, _A)

# int32_t llama_model_n_embd(const struct llama_model * model)
llama_model_n_embd = _function("llama_model_n_embd", _L, _A)

# llama_memory_t llama_get_memory(const struct llama_context * ctx)
llama_get_memory = _function("llama_get_memory", _A, _A)
# void llama_memory_clear(llama_memory_t mem, bool data)
llama_memory_clear = _function("llama_memory_clear", None, _A, _B)
# bool llama_memory_seq_rm(llama_memory_t mem, llama_seq_id, llama_pos p0, llama_pos p1)
llama_memory_seq_rm = _function("llama_memory_seq_rm", _B, _A, _L, _L, _L)
# void llama_memory_seq_cp(llama_memory_t, llama_seq_id src, llama_seq_id dst, llama_pos, llama_pos)
llama_memory_seq_cp = _function("llama_memory_seq_cp", None, _A, _L, _L, _L, _L)
# llama_pos llama_memory_seq_pos_max(llama_memory_t mem, llama_seq_id seq_id)
llama_memory_seq_pos_max = _function("llama_memory_seq_pos_max", _L, _A, _L)
# size_t llama_state_seq_get_size_ext(ctx, llama_seq_id, llama_state_seq_flags flags)
llama_state_seq_get_size_ext = _function("llama_state_seq_get_size_ext", _Q, _A, _L, c.c_uint32)
# size_t llama_state_seq_get_data_ext(ctx, uint8_t * dst, size_t size, llama_seq_id, flags)
_STATE = (_A, c.POINTER(c.c_uint8), _Q, _L, c.c_uint32)
llama_state_seq_get_data_ext = _function("llama_state_seq_get_data_ext", _Q, *_STATE)
# size_t llama_state_seq_set_data_ext(ctx, const uint8_t * src, size_t size, llama_seq_id, flags)
llama_state_seq_set_data_ext = _function("llama_state_seq_set_data_ext", _Q, *_STATE)

# struct llama_adapter_lora * llama_adapter_lora_init(struct llama_model *, const char * path_lora)
llama_adapter_lora_init = _function("llama_adapter_lora_init", _A, _A, _S)
# void llama_adapter_lora_free(struct llama_adapter_lora * adapter)
llama_adapter_lora_free = _function("llama_adapter_lora_free", None, _A)
# int32_t llama_set_adapters_lora(ctx, llama_adapter_lora ** adapters, size_t n, float * scales)
llama_set_adapters_lora = _function(
    "llama_set_adapters_lora", _L, _A, c.POINTER(_A), _Q, c.POINTER(_F)
)

# struct llama_sampler_chain_params llama_sampler_chain_default_params(void)
llama_sampler_chain_default_params = _function(
    "llama_sampler_chain_default_params", llama_sampler_chain_params
)
# struct llama_sampler * llama_sampler_chain_init(struct llama_sampler_chain_params params)
llama_sampler_chain_init = _function("llama_sampler_chain_init", _A, llama_sampler_chain_params)
# void llama_sampler_chain_add(struct llama_sampler * chain, struct llama_sampler * smpl)
llama_sampler_chain_add = _function("llama_sampler_chain_add", None, _A, _A)
# void llama_sampler_free(struct llama_sampler * smpl)
llama_sampler_free = _function("llama_sampler_free", None, _A)
# struct llama_sampler * llama_sampler_init_greedy(void)
llama_sampler_init_greedy = _function("llama_sampler_init_greedy", _A)
# struct llama_sampler * llama_sampler_init_dist(uint32_t seed)
llama_sampler_init_dist = _function("llama_sampler_init_dist", _A, c.c_uint32)
# struct llama_sampler * llama_sampler_init_top_k(int32_t k)
llama_sampler_init_top_k = _function("llama_sampler_init_top_k", _A, _L)
# struct llama_sampler * llama_sampler_init_top_p(float p, size_t min_keep)
llama_sampler_init_top_p = _function("llama_sampler_init_top_p", _A, _F, _Q)
# struct llama_sampler * llama_sampler_init_min_p(float p, size_t min_keep)
llama_sampler_init_min_p = _function("llama_sampler_init_min_p", _A, _F, _Q)
# struct llama_sampler * llama_sampler_init_temp(float t)
llama_sampler_init_temp = _function("llama_sampler_init_temp", _A, _F)
# struct llama_sampler * llama_sampler_init_penalties(n_vocab, last_n, repeat, freq, present)
llama_sampler_init_penalties = _function("llama_sampler_init_penalties", _A, _L, _L, _F, _F, _F)

# llama_get_memory_breakdown, see native/sizes.cpp: exported by the name that C++ gives it, which
# Microsoft's compiler spells in its own way
_MAP = (
    "?AV?$map@PEAUggml_backend_buffer_type@@Ullama_memory_breakdown_data@@"
    "U?$less@PEAUggml_backend_buffer_type@@@std@@V?$allocator@U?$pair@"
    "QEAUggml_backend_buffer_type@@Ullama_memory_breakdown_data@@@std@@@4@@std@@"
)
MEMORY_BREAKDOWN = (
    f"?llama_get_memory_breakdown@@YA{_MAP}PEBUllama_context@@@Z"
    if sys.platform == "win32"
    else "_Z26llama_get_memory_breakdownPK13llama_context"
)
# uint32_t llama_context::graph_max_nodes(uint32_t n_tokens) const
_GRAPH_MAX_NODES = "_ZNK13llama_context15graph_max_nodesEj"
# ggml_cgraph * llama_graph_reserve(llama_context *, uint32_t n_tokens, n_seqs, n_outputs)
_GRAPH_RESERVE = "?llama_graph_reserve@@YAPEAUggml_cgraph@@PEAUllama_context@@III@Z"
# llama_internal_get_tensor_map, see native/tensors.cpp. GCC's library tags its strings in names,
# except the old kind, of 8 bytes. The strings of Clang's library have 24 bytes.
_TENSOR_MAP_TAGGED = "_Z29llama_internal_get_tensor_mapB5cxx11PK11llama_model"
_TENSOR_MAP = "_Z29llama_internal_get_tensor_mapPK11llama_model"


def graph_max_nodes(context: Any, num_tokens: int) -> int:
    """Return how many nodes the graph of a batch of `num_tokens`, the context's largest, may have.
    Windows' library exports no function for it, but reserves each graph with room for as many."""
    if sys.platform == "win32":
        unsigned = c.c_uint32
        reserve = _function(_GRAPH_RESERVE, _A, _A, unsigned, unsigned, unsigned)
        return int(ggml_graph_size(reserve(context, 1, 1, 1)))
    llama_function(_GRAPH_MAX_NODES)  # refuses a library without it
    return int(_function(_GRAPH_MAX_NODES, c.c_uint32, _A, c.c_uint32)(context, num_tokens))


def adapter_arrays(adapter: Any) -> tuple[Any, Any]:
    """Return arrays of one adapter and of its scale, 1."""
    return (_A * 1)(adapter), (_F * 1)(1.0)


def candidates(num_tokens: int) -> Any:
    """Return an array of `num_tokens` structs llama_token_data."""
    return (llama_token_data * num_tokens)()


def tensor_map() -> tuple[int, int] | None:
    """Return the address of llama_internal_get_tensor_map and the bytes of a std::string in it;
    None on Windows, where it is not exported. Raises BindingError where it is missing elsewhere."""
    if sys.platform == "win32":
        return None
    if hasattr(_library, _TENSOR_MAP_TAGGED):
        return llama_function(_TENSOR_MAP_TAGGED), 32
    return llama_function(_TENSOR_MAP), 24 if sys.platform == "darwin" else 8
