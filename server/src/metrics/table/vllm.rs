//! The same under the names of vLLM, with its labels, which gateways and published dashboards read.
//! `engine` is always `0`. What vLLM counts and we do not have (LoRA, speculation, several answers to
//! one request, lifetimes of blocks) is not there.

use super::{Kind, Panel, Row, Unit, rows};

rows! {
    /// Rows under vLLM's names.
    VLLM;

    V_RUNNING = Gauge "vllm:num_requests_running" ["model_name", "engine"] Count None
        "Requests that hold state.";
    V_WAITING = Gauge "vllm:num_requests_waiting" ["model_name", "engine"] Count None
        "Requests that wait for admission.";
    V_USAGE = Gauge "vllm:kv_cache_usage_perc" ["model_name", "engine"] Ratio None
        "Share of the state that running requests hold, 0 to 1: of pages or of places for recurrent state, whichever is more. What is only remembered gives way, so it is not counted.";
    V_CONFIG = Gauge "vllm:cache_config_info" ["model_name", "engine", "block_size", "num_gpu_blocks"] Count None
        "Tokens of a page and pages of the pool, in the labels; always 1.";
    V_QUERIES = Counter "vllm:prefix_cache_queries_total" ["model_name", "engine"] Count None
        "Tokens of prompts that were looked up.";
    V_HITS = Counter "vllm:prefix_cache_hits_total" ["model_name", "engine"] Count None
        "Tokens of prompts that were resumed.";
    V_PREEMPTIONS = Counter "vllm:num_preemptions_total" ["model_name", "engine"] Count None
        "Times a running sequence gave its pages to another.";
    V_PROMPT_TOKENS = Counter "vllm:prompt_tokens_total" ["model_name", "engine"] Count None
        "Tokens of admitted prompts.";
    V_GENERATION_TOKENS = Counter "vllm:generation_tokens_total" ["model_name", "engine"] Count None
        "Tokens generated.";
    V_SUCCESS = Counter "vllm:request_success_total" ["model_name", "engine", "finished_reason"] Count None
        "Completions that ended, by reason: stop, length, abort, error.";
    V_FIRST_TOKEN = Histogram "vllm:time_to_first_token_seconds" ["model_name", "engine"] Seconds None (FIRST_TOKEN)
        "Time from arrival to the first token.";
    V_INTER_TOKEN = Histogram "vllm:inter_token_latency_seconds" ["model_name", "engine"] Seconds None (TOKEN)
        "Time between two tokens of a completion.";
    V_TOKEN_TIME = Histogram "vllm:request_time_per_output_token_seconds" ["model_name", "engine"] Seconds None (TOKEN)
        "Time of decode by tokens after the first, of each completion.";
    V_REQUEST = Histogram "vllm:e2e_request_latency_seconds" ["model_name", "engine"] Seconds None (REQUEST)
        "Time from arrival to the end.";
    V_QUEUE = Histogram "vllm:request_queue_time_seconds" ["model_name", "engine"] Seconds None (REQUEST)
        "Time from arrival to admission.";
    V_PREFILL = Histogram "vllm:request_prefill_time_seconds" ["model_name", "engine"] Seconds None (REQUEST)
        "Time from admission to the end of the prompt.";
    V_DECODE = Histogram "vllm:request_decode_time_seconds" ["model_name", "engine"] Seconds None (REQUEST)
        "Time from the end of the prompt to the last token.";
    V_INFERENCE = Histogram "vllm:request_inference_time_seconds" ["model_name", "engine"] Seconds None (REQUEST)
        "Time from admission to the end.";
    V_PROMPT_LENGTH = Histogram "vllm:request_prompt_tokens" ["model_name", "engine"] Count None (REQUEST_TOKENS)
        "Tokens of each prompt.";
    V_COMPLETION_LENGTH = Histogram "vllm:request_generation_tokens" ["model_name", "engine"] Count None (REQUEST_TOKENS)
        "Tokens of each completion.";
    V_MAX_TOKENS = Histogram "vllm:request_params_max_tokens" ["model_name", "engine"] Count None (REQUEST_TOKENS)
        "Most tokens that each request asked for, where it did.";
    V_STEP_TOKENS = Histogram "vllm:iteration_tokens_total" ["model_name", "engine"] Count None (STEP_TOKENS)
        "Tokens of a step.";
}
