//! Metrics under our own names, and those of the process.

use super::{Kind, Panel, Row, Unit, rows};

rows! {
    /// Rows under our own names.
    OWN;

    BUILD_INFO = Gauge "sconce_build_info" ["version", "commit", "device"] Count Server
        "What runs; always 1.";
    READY = Gauge "sconce_ready" [] Count Server
        "1 if a model is ready and the server does not drain, so that completions are answered; else 0.";
    DRAINING = Gauge "sconce_draining" [] Count Server "1 while the server shuts down; else 0.";
    UPTIME = Gauge "sconce_uptime_seconds" [] Seconds Server "Time since the server started.";
    DEVICE_ALIVE = Gauge "sconce_device_alive" [] Count Server
        "1 if the thread that computes runs; else 0.";
    STEP_RUNNING = Gauge "sconce_step_running_seconds" [] Seconds Server
        "How long the step has taken that is running; 0 between steps.";
    RESTARTS = Counter "sconce_engine_restarts_total" [] Count Server
        "Panics of the thread that computes, outside of a step's computation; it goes on after each, and the process ends if they are too many.";

    SECRET_STALE = Gauge "sconce_secret_stale" ["secret"] Count Server
        "1 if what the files of a setting (certificates, tokens) say now cannot be used, so that what they said before stays in force; else 0.";

    REQUESTS = Counter "sconce_requests_total" ["rpc", "code"] Count Requests
        "Requests that ended, by RPC and gRPC code; RPCs that the server does not know are `other`.";
    REQUEST_SECONDS = Histogram "sconce_request_seconds" ["rpc"] Seconds Requests (REQUEST)
        "Time from a request's head to the end of its answer.";
    COMPLETIONS = Counter "sconce_completions_total" ["model", "end"] Count Requests
        "Completions that ended, by how: stop, stopped (stop string, or the server's end), length, deadline, failed, cancelled.";

    FIRST_TOKEN = Histogram "sconce_time_to_first_token_seconds" ["model"] Seconds Latency (FIRST_TOKEN)
        "Time from arrival to the first token.";
    INTER_TOKEN = Histogram "sconce_inter_token_seconds" ["model"] Seconds Latency (TOKEN)
        "Time between two tokens of a completion.";
    QUEUE_SECONDS = Histogram "sconce_queue_seconds" ["model"] Seconds Latency (REQUEST)
        "Time from arrival to admission.";
    PREFILL_SECONDS = Histogram "sconce_prefill_seconds" ["model"] Seconds Latency (REQUEST)
        "Time from admission to the end of the prompt.";
    DECODE_SECONDS = Histogram "sconce_decode_seconds" ["model"] Seconds Latency (REQUEST)
        "Time from the end of the prompt to the last token.";

    QUEUE_REQUESTS = Gauge "sconce_queue_requests" [] Count Engine
        "Requests that wait for admission, over all models.";
    QUEUE_REQUESTS_MAX = Gauge "sconce_queue_requests_max" [] Count Engine
        "Most requests that may wait; further ones are refused.";
    SEQUENCES = Gauge "sconce_sequences" ["model", "state"] Count Engine
        "Requests of a model: waiting; running, with state; of these paused, because their reader lags.";
    TOKENS = Counter "sconce_tokens_total" ["model", "kind"] Count Engine
        "Tokens: of admitted prompts, of these cached and computed, and of completions.";
    PREEMPTIONS = Counter "sconce_preemptions_total" ["model"] Count Engine
        "Times a running sequence gave its pages to another, to be computed or resumed later.";
    STEP_SECONDS = Histogram "sconce_step_seconds" ["model", "phase"] Seconds Engine (STEP)
        "Time of a step with sampling and sending, by what it evaluated: prefill, decode or mixed.";
    BATCH_TOKENS = Histogram "sconce_batch_tokens" ["model"] Count Engine (STEP_TOKENS)
        "Tokens of a step.";

    MEMORY = Gauge "sconce_memory_bytes" ["tier", "class"] Bytes Memory
        "Bytes set aside, by where (device, host, disk) and for what (weights, workspace, live_state, cached_state).";
    MEMORY_BUDGET = Gauge "sconce_memory_budget_bytes" ["tier"] Bytes Memory
        "Most bytes that may be set aside in a tier; absent where there is no limit.";
    MEMORY_PEAK = Gauge "sconce_memory_peak_bytes" ["tier"] Bytes Memory
        "Most bytes that were ever set aside in a tier.";
    STATE_PAGES = Gauge "sconce_state_pages" ["model", "kind"] Count Memory
        "Pages of a model's pool of state: max, held (remembered ones included), and running (of requests that run).";
    STATE_SLOTS = Gauge "sconce_state_slots" ["model", "kind"] Count Memory
        "Places for recurrent state, max and running; absent for a model without recurrent layers.";

    LOOKUPS = Counter "sconce_cache_lookups_total" ["model", "reason"] Count Cache
        "Prompts by the reason why no more of them was resumed.";
    RESUMED = Counter "sconce_resumed_tokens_total" ["model", "tier"] Count Cache
        "Tokens of prompts that were not computed again, by the slowest tier that their state lay in.";
    RECOMPUTED = Counter "sconce_recomputed_tokens_total" ["model", "reason"] Count Cache
        "Tokens of prompts that had to be computed, by the reason why no more was resumed.";
    CACHE_BYTES = Gauge "sconce_cache_bytes" ["tier"] Bytes Cache "Bytes of remembered state.";
    CACHE_BUDGET = Gauge "sconce_cache_budget_bytes" ["tier"] Bytes Cache
        "Most bytes of remembered state; 0 where the tier is off, absent where there is no limit.";
    EVICTIONS = Counter "sconce_cache_evictions_total" ["tier", "kind"] Count Cache
        "Pieces of state forgotten, by the tier they lay in and what they were (span of pages, restore point).";
    EVICTED_TOKENS = Counter "sconce_cache_evicted_tokens_total" ["tier"] Count Cache
        "Tokens of the spans forgotten.";
    MOVED_BYTES = Counter "sconce_cache_moved_bytes_total" ["direction", "tier"] Bytes Cache
        "Bytes that moved up, by the tier they came from, and down, by the tier they went to.";
    LOST = Counter "sconce_cache_lost_total" ["kind"] Count Cache
        "Pieces of state that turned out to be damaged when they were wanted.";
    POINTS_SKIPPED = Counter "sconce_restore_points_skipped_total" [] Count Cache
        "Restore points that were not made for want of room.";
    PINS_REFUSED = Counter "sconce_cache_pins_refused_total" [] Count Cache
        "Requests that asked to be pinned and were not, for want of room.";
    TRIE_NODES = Gauge "sconce_trie_nodes" [] Count Cache "Nodes of the prefix trees of all models.";
    RESTORE_POINTS = Gauge "sconce_restore_points" [] Count Cache
        "Points held that models with recurrent layers can resume from.";
    DISK_RECORDS = Counter "sconce_disk_records_total" ["operation"] Count Cache
        "Records of the disk tier that were written, read, and removed.";
    DISK_BYTES = Counter "sconce_disk_transferred_bytes_total" ["operation"] Bytes Cache
        "Bytes of the records written and read.";
    DISK_FAULTS = Counter "sconce_disk_faults_total" ["fault"] Count Cache
        "Faults of the disk tier: write and read (failed), damaged (refused records), break (writing stopped for a while).";

    MODELS = Gauge "sconce_models" ["state"] Count Models
        "Models: loading, ready, unloading, failed.";
    LOAD_PROGRESS = Gauge "sconce_load_progress_ratio" [] Ratio Models
        "Bytes of weights that the running loads have read, of all that they will; absent where nothing is loading.";
    LOADS = Counter "sconce_loads_total" ["outcome"] Count Models
        "Loads that ended: ready, failed, cancelled.";
    LOAD_SECONDS = Histogram "sconce_load_seconds" [] Seconds Models (LOAD)
        "Time of the loads that gave a model.";

    PROCESS_CPU = Counter "process_cpu_seconds_total" [] Seconds Process
        "Processor time of the process.";
    PROCESS_RESIDENT = Gauge "process_resident_memory_bytes" [] Bytes Process
        "Main memory of the process.";
    PROCESS_VIRTUAL = Gauge "process_virtual_memory_bytes" [] Bytes Process
        "Addresses that the process has taken.";
    PROCESS_FDS = Gauge "process_open_fds" [] Count Process "File descriptors that are open.";
    PROCESS_FDS_MAX = Gauge "process_max_fds" [] Count Process "Most file descriptors.";
    PROCESS_THREADS = Gauge "process_threads" [] Count Process "Threads of the process.";
    PROCESS_START = Gauge "process_start_time_seconds" [] Time Process
        "When the process started, in seconds since 1970.";
}
