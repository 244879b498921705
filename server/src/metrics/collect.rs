//! What is known of a server, as samples of the table's rows. A label here is the name of a model, of
//! which the engine tells apart a bounded number, or of a list in this program.

use sconce_cache::{Class, Reason, Tier};
use sconce_engine::{End, ModelReading, ModelState, ModelStatus, Phase, Status};

use super::calls::CallMeter;
use super::page::Page;
use super::process::Process;
use super::{table, truth};
use crate::grpc::convert::reason_name;
use crate::grpc::status::code_name;
use crate::models::Models;
use crate::serve::Secrets;

/// vLLM's number of the engine.
const ENGINE: &str = "0";

/// What was read from files.
pub(super) fn secrets(page: &mut Page, secrets: &Secrets) {
    for secret in secrets.status() {
        page.set(&table::SECRET_STALE, &[secret.name], truth(secret.problem.is_some()));
    }
}

/// Requests at the edge.
pub(super) fn calls(page: &mut Page, calls: &CallMeter) {
    for reading in calls.read() {
        for (code, count) in reading.codes {
            page.count(&table::REQUESTS, &[reading.rpc, code_name(code)], count);
        }
        page.histogram(&table::REQUEST_SECONDS, &[reading.rpc], &reading.seconds);
    }
}

/// The engine as a whole: the queue, the device thread, memory.
pub(super) fn engine(page: &mut Page, status: &Status) {
    page.set(&table::DEVICE_ALIVE, &[], truth(status.device.alive));
    let in_step = status.device.in_step.unwrap_or_default();
    page.set(&table::STEP_RUNNING, &[], in_step.as_secs_f64());
    page.count(&table::RESTARTS, &[], status.device.restarts);
    page.count(&table::QUEUE_REQUESTS, &[], status.waiting as u64);
    page.count(&table::QUEUE_REQUESTS_MAX, &[], status.waiting_max as u64);
    for tier in Tier::ALL {
        let (name, account) = (tier.to_string(), status.memory.tier(tier));
        for class in Class::ALL {
            let class_name = class.to_string().replace(' ', "_");
            page.count(&table::MEMORY, &[&name, &class_name], account.used(class));
        }
        if account.budget != u64::MAX {
            page.count(&table::MEMORY_BUDGET, &[&name], account.budget);
        }
        page.count(&table::MEMORY_PEAK, &[&name], account.peak);
    }
}

/// What was counted of models, loaded or not, and those that are loaded as they are.
pub(super) fn models(page: &mut Page, models: &Models, status: &Status) {
    let readings = models.readings();
    for reading in &readings.models {
        own(page, reading);
        vllm(page, reading);
    }
    let states =
        [ModelState::Loading, ModelState::Ready, ModelState::Unloading, ModelState::Failed];
    for state in states {
        let count = status.models.iter().filter(|model| model.state == state).count();
        page.count(&table::MODELS, &[&state.to_string()], count as u64);
    }
    let loading = status.models.iter().filter(|model| model.state == ModelState::Loading);
    let (done, total) = loading.fold((0, 0), |(done, total), model| {
        (done + model.progress.done_bytes, total + model.progress.total_bytes)
    });
    if total > 0 {
        page.set(&table::LOAD_PROGRESS, &[], done as f64 / total as f64);
    }
    let loads = &readings.loads;
    for (outcome, count) in
        [("ready", loads.ready), ("failed", loads.failed), ("cancelled", loads.cancelled)]
    {
        page.count(&table::LOADS, &[outcome], count);
    }
    page.histogram(&table::LOAD_SECONDS, &[], &loads.seconds);
    // Those beyond the bound are counted together and not shown one by one.
    let told = |model: &&ModelStatus| readings.models.iter().any(|r| r.model == model.name);
    for model in status.models.iter().filter(told) {
        now(page, model, models);
    }
}

/// Counts and times of a model under our own names.
fn own(page: &mut Page, reading: &ModelReading) {
    let model = reading.model.as_str();
    for (end, count) in End::ALL.into_iter().zip(reading.ended) {
        page.count(&table::COMPLETIONS, &[model, end_name(end)], count);
    }
    let (cached, computed): (u64, u64) =
        (reading.resumed_tokens.iter().sum(), reading.recomputed_tokens.iter().sum());
    for (kind, count) in [
        ("prompt", reading.prompt_tokens[0]),
        ("cached", cached),
        ("computed", computed),
        ("completion", reading.completion_tokens[0]),
    ] {
        page.count(&table::TOKENS, &[model, kind], count);
    }
    for (tier, count) in Tier::ALL.into_iter().zip(reading.resumed_tokens) {
        page.count(&table::RESUMED, &[model, &tier.to_string()], count);
    }
    let by_reason = reading.lookups.into_iter().zip(reading.recomputed_tokens);
    for (reason, (lookups, tokens)) in Reason::ALL.into_iter().zip(by_reason) {
        let reason = reason_name(reason).to_ascii_lowercase();
        page.count(&table::LOOKUPS, &[model, &reason], lookups);
        page.count(&table::RECOMPUTED, &[model, &reason], tokens);
    }
    page.count(&table::PREEMPTIONS, &[model], reading.preemptions[0]);
    for (phase, steps) in Phase::ALL.into_iter().zip(&reading.steps) {
        page.histogram(&table::STEP_SECONDS, &[model, phase.name()], steps);
    }
    for (row, histogram) in [
        (&table::FIRST_TOKEN, &reading.first_token),
        (&table::INTER_TOKEN, &reading.inter_token),
        (&table::QUEUE_SECONDS, &reading.queue),
        (&table::PREFILL_SECONDS, &reading.prefill),
        (&table::DECODE_SECONDS, &reading.decode),
        (&table::BATCH_TOKENS, &reading.step_tokens),
    ] {
        page.histogram(row, &[model], histogram);
    }
}

/// The same under vLLM's.
fn vllm(page: &mut Page, reading: &ModelReading) {
    let labels = [reading.model.as_str(), ENGINE];
    let ended = |ends: &[End]| ends.iter().map(|end| reading.ended[*end as usize]).sum();
    for (reason, count) in [
        ("stop", ended(&[End::Stop, End::Stopped])),
        ("length", ended(&[End::Length])),
        ("abort", ended(&[End::Deadline, End::Cancelled])),
        ("error", ended(&[End::Failed])),
    ] {
        page.count(&table::V_SUCCESS, &[labels[0], labels[1], reason], count);
    }
    for (row, count) in [
        (&table::V_QUERIES, reading.prompt_tokens[0]),
        (&table::V_HITS, reading.resumed_tokens.iter().sum()),
        (&table::V_PREEMPTIONS, reading.preemptions[0]),
        (&table::V_PROMPT_TOKENS, reading.prompt_tokens[0]),
        (&table::V_GENERATION_TOKENS, reading.completion_tokens[0]),
    ] {
        page.count(row, &labels, count);
    }
    for (row, histogram) in [
        (&table::V_FIRST_TOKEN, &reading.first_token),
        (&table::V_INTER_TOKEN, &reading.inter_token),
        (&table::V_TOKEN_TIME, &reading.token_time),
        (&table::V_REQUEST, &reading.request),
        (&table::V_QUEUE, &reading.queue),
        (&table::V_PREFILL, &reading.prefill),
        (&table::V_DECODE, &reading.decode),
        (&table::V_INFERENCE, &reading.inference),
        (&table::V_PROMPT_LENGTH, &reading.prompt_length),
        (&table::V_COMPLETION_LENGTH, &reading.completion_length),
        (&table::V_MAX_TOKENS, &reading.max_tokens),
        (&table::V_STEP_TOKENS, &reading.step_tokens),
    ] {
        page.histogram(row, &labels, histogram);
    }
}

/// A loaded model as it is.
fn now(page: &mut Page, model: &ModelStatus, models: &Models) {
    let name = model.name.as_str();
    for (state, count) in
        [("waiting", model.waiting), ("running", model.running), ("paused", model.paused)]
    {
        page.count(&table::SEQUENCES, &[name, state], count as u64);
    }
    for (kind, count) in
        [("max", model.pages_max), ("held", model.pages_used), ("running", model.pages_running)]
    {
        page.count(&table::STATE_PAGES, &[name, kind], count as u64);
    }
    if model.slots_max > 0 {
        for (kind, count) in [("max", model.slots_max), ("running", model.slots_running)] {
            page.count(&table::STATE_SLOTS, &[name, kind], count as u64);
        }
    }
    page.count(&table::V_RUNNING, &[name, ENGINE], model.running as u64);
    page.count(&table::V_WAITING, &[name, ENGINE], model.waiting as u64);
    page.set(&table::V_USAGE, &[name, ENGINE], usage(model));
    if let Some(loaded) = models.loaded_as(name) {
        let (tokens, pages) = (loaded.page_tokens.to_string(), loaded.pages_max.to_string());
        page.set(&table::V_CONFIG, &[name, ENGINE, &tokens, &pages], 1.0);
    }
}

/// Share of the state that running requests hold.
fn usage(model: &ModelStatus) -> f64 {
    let share = |part: usize, whole: usize| part as f64 / whole.max(1) as f64;
    share(model.pages_running, model.pages_max).max(share(model.slots_running, model.slots_max))
}

/// What is remembered.
pub(super) fn cache(page: &mut Page, status: &Status) {
    let (cache, trie, disk) = (&status.cache, &status.cache.trie, &status.cache.disk);
    for (index, tier) in Tier::ALL.into_iter().enumerate() {
        let name = tier.to_string();
        page.count(&table::CACHE_BYTES, &[&name], cache.tiers[index].used_bytes);
        if cache.tiers[index].limit_bytes != u64::MAX {
            page.count(&table::CACHE_BUDGET, &[&name], cache.tiers[index].limit_bytes);
        }
        page.count(&table::EVICTIONS, &[&name, "span"], trie.spans_dropped[index]);
        page.count(&table::EVICTIONS, &[&name, "point"], trie.points_dropped[index]);
        page.count(&table::EVICTED_TOKENS, &[&name], trie.tokens_dropped[index]);
        if tier != Tier::Device {
            page.count(&table::MOVED_BYTES, &["up", &name], trie.bytes_up[index]);
            page.count(&table::MOVED_BYTES, &["down", &name], trie.bytes_down[index]);
        }
    }
    page.count(&table::LOST, &["span"], trie.spans_lost);
    page.count(&table::LOST, &["point"], trie.points_lost);
    page.count(&table::POINTS_SKIPPED, &[], cache.points_skipped);
    page.count(&table::PINS_REFUSED, &[], cache.pins_refused);
    page.count(&table::TRIE_NODES, &[], trie.nodes as u64);
    page.count(&table::RESTORE_POINTS, &[], trie.points_held());
    for (operation, count) in
        [("written", disk.written), ("read", disk.read), ("removed", disk.removed)]
    {
        page.count(&table::DISK_RECORDS, &[operation], count);
    }
    page.count(&table::DISK_BYTES, &["written"], disk.written_bytes);
    page.count(&table::DISK_BYTES, &["read"], disk.read_bytes);
    for (fault, count) in [
        ("write", disk.write_failures),
        ("read", disk.read_failures),
        ("damaged", disk.refused),
        ("break", disk.breaks),
    ] {
        page.count(&table::DISK_FAULTS, &[fault], count);
    }
}

/// The process.
pub(super) fn process(page: &mut Page) {
    let Some(process) = Process::read() else { return };
    page.set(&table::PROCESS_CPU, &[], process.cpu_seconds);
    page.count(&table::PROCESS_RESIDENT, &[], process.resident_bytes);
    page.count(&table::PROCESS_VIRTUAL, &[], process.virtual_bytes);
    page.count(&table::PROCESS_FDS, &[], process.open_fds);
    if let Some(max) = process.max_fds {
        page.count(&table::PROCESS_FDS_MAX, &[], max);
    }
    page.count(&table::PROCESS_THREADS, &[], process.threads);
    page.set(&table::PROCESS_START, &[], process.start_time);
}

fn end_name(end: End) -> &'static str {
    match end {
        End::Stop => "stop",
        End::Stopped => "stopped",
        End::Length => "length",
        End::Deadline => "deadline",
        End::Failed => "failed",
        End::Cancelled => "cancelled",
    }
}
