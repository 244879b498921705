//! From settings to what the server is built from, with every rule checked once. Rules that one
//! value's type cannot express are here, so that a wrong setting is told before anything starts.

use crate::serve::{CompatPlan, DrainPlan, EnginePlan, Limits, ModelPlan, ServePlan, TracePlan};
use crate::trace;
use sconce_models::{DeviceChoice, DeviceError};

use super::cache::DeviceBudget;
use super::machine::Machine;
use super::size::{Amount, Share};
use super::{Auto, Config, ConfigError, Layers};

/// Most threads that make sense on one machine.
const THREADS_MAX: usize = 1024;
/// Most sequences of one model.
const SEQUENCES_MAX: usize = 4096;
/// Most waiting requests of one model.
const WAITING_MAX: usize = 1 << 20;
/// Most tokens of a step.
const PREFILL_CHUNK_MAX: usize = 1 << 16;
/// Most tokens of a context.
const CONTEXT_MAX: usize = 1 << 24;
/// Most connections.
const CONNECTIONS_MAX: usize = 1 << 20;
/// Of the memory where the models compute: the memory budget, unless set. The rest is for the system,
/// and for what the edge holds.
const MEMORY_SHARE: Share = Share::percent(80);
/// Longest name of a model.
const MODEL_NAME_BYTES_MAX: usize = 128;
/// What a model may be called.
const MODEL_NAME: &str = "1 to 128 letters, digits, `.`, `_`, `-`, `:` and `/` as a model's name";

impl Config {
    /// Checks the rules between settings and makes the server's plan.
    ///
    /// # Errors
    /// The first setting that breaks a rule, with its source from `layers`.
    pub fn plan(&self, layers: &Layers) -> Result<ServePlan, ConfigError> {
        self.plan_on(&Machine::read(), layers)
    }

    /// The plan for `machine`.
    ///
    /// # Errors
    /// As [`Config::plan`].
    pub fn plan_on(&self, machine: &Machine, layers: &Layers) -> Result<ServePlan, ConfigError> {
        let (server, engine) = (&self.server, &self.engine);
        let check = Checker { layers };
        let device = check.device(engine.device)?;
        check.range("engine", "threads", engine.threads.given().unwrap_or(1), THREADS_MAX)?;
        check.range("engine", "sequences_max", engine.sequences_max, SEQUENCES_MAX)?;
        check.range("engine", "waiting_max", engine.waiting_max, WAITING_MAX)?;
        let chunk = engine.prefill_chunk_tokens;
        check.range("engine", "prefill_chunk_tokens", chunk, PREFILL_CHUNK_MAX)?;
        check.range("engine", "context_length_max", engine.context_length_max, CONTEXT_MAX)?;
        check.range("server", "connections_max", server.connections_max, CONNECTIONS_MAX)?;
        let of_one = server.connections_per_address_max;
        check.range("server", "connections_per_address_max", of_one, CONNECTIONS_MAX)?;
        let streams = server.streams_per_connection_max as usize;
        check.range("server", "streams_per_connection_max", streams, CONNECTIONS_MAX)?;
        let own_memory = (machine.device_memory)(device);
        let memory_budget = self.memory_budget(own_memory.or(machine.memory), &check)?;
        let budget = DeviceBudget { bytes: memory_budget, own_memory };
        Ok(ServePlan {
            listen: server.listen.clone(),
            admin: server.admin.clone(),
            models: self.model_plans(&check)?,
            engine: EnginePlan {
                device,
                memory_budget,
                sequences_max: engine.sequences_max,
                waiting_max: engine.waiting_max,
                prefill_chunk_tokens: engine.prefill_chunk_tokens,
                context_length_max: engine.context_length_max,
                threads: engine.threads.given(),
                step_time_max: engine.step_time_max.0,
            },
            cache: self.cache.plan(budget, machine, &check)?,
            precision: engine.precision.into(),
            limits: Limits {
                request_seconds_max: server.request_time_max.0,
                connection_age_max: server.connection_age_max.0,
                connections_max: server.connections_max,
                streams_per_connection_max: server.streams_per_connection_max,
            },
            drain: DrainPlan { withdrawal: server.withdrawal.0, drain: server.drain.0 },
            reflection: server.reflection,
            compat: self.compat_plan(&check)?,
            security: server.security(&check)?,
            trace: self.trace_plan(&check)?,
        })
    }

    /// Where spans go, if this build can send any.
    fn trace_plan(&self, check: &Checker<'_>) -> Result<TracePlan, ConfigError> {
        let endpoint = &self.telemetry.otlp;
        let key = ["telemetry", "otlp"];
        if endpoint.is_empty() {
            return Ok(TracePlan::default());
        }
        if !trace::IS_BUILT {
            let expected = "no text, for this build has no feature `otlp`";
            return Err(check.refuse(&key, expected, endpoint));
        }
        if !endpoint.starts_with("http://") {
            let expected = "a URL of a collector such as `http://127.0.0.1:4317`, without TLS";
            return Err(check.refuse(&key, expected, endpoint));
        }
        Ok(TracePlan { endpoint: Some(endpoint.clone()) })
    }

    /// A share of the memory where the models compute; `None` where none is set and the machine does
    /// not tell what it has.
    fn memory_budget(
        &self,
        memory: Option<u64>,
        check: &Checker<'_>,
    ) -> Result<Option<u64>, ConfigError> {
        match self.engine.memory_budget {
            Auto::Auto => Ok(memory.map(|memory| MEMORY_SHARE.of(memory))),
            Auto::Given(amount) => {
                check.bytes(&["engine", "memory_budget"], amount, memory).map(Some)
            }
        }
    }

    fn compat_plan(&self, check: &Checker<'_>) -> Result<CompatPlan, ConfigError> {
        let name = &self.compat.vllm_model;
        if !name.is_empty() && !is_model_name(name) {
            let key = ["compat", "vllm_model"];
            let expected = format!("no text or {MODEL_NAME}");
            return Err(check.refuse(&key, &expected, format!("`{name}`")));
        }
        let vllm_model = (!name.is_empty()).then(|| name.clone());
        Ok(CompatPlan { vllm: self.compat.vllm, vllm_model })
    }

    fn model_plans(&self, check: &Checker<'_>) -> Result<Vec<ModelPlan>, ConfigError> {
        self.models
            .iter()
            .map(|(name, model)| {
                check.model_name(name)?;
                if model.path.is_empty() {
                    let expected = "a directory, a .gguf file or `sim:`";
                    return Err(check.refuse(&["models", name, "path"], expected, "no text"));
                }
                if let Auto::Given(length) = model.context_length {
                    let key = ["models", name, "context_length"];
                    check.range_at(&key, length, CONTEXT_MAX)?;
                }
                Ok(ModelPlan {
                    name: name.clone(),
                    path: model.path.clone(),
                    context_length: model.context_length.given(),
                    keep_alive: model.keep_alive.given().map(|span| span.0),
                })
            })
            .collect()
    }
}

/// Tells which setting breaks a rule, and where it was set.
pub(super) struct Checker<'a> {
    layers: &'a Layers,
}

impl Checker<'_> {
    pub(super) fn refuse(&self, key: &[&str], expected: &str, found: impl ToString) -> ConfigError {
        ConfigError::Value {
            key: key.join("."),
            origin: self.layers.origin_of(key),
            expected: expected.to_owned(),
            found: found.to_string(),
        }
    }

    fn range(&self, section: &str, key: &str, found: usize, max: usize) -> Result<(), ConfigError> {
        self.range_at(&[section, key], found, max)
    }

    pub(super) fn range_at(
        &self,
        key: &[&str],
        found: usize,
        max: usize,
    ) -> Result<(), ConfigError> {
        if (1..=max).contains(&found) {
            return Ok(());
        }
        Err(self.refuse(key, &format!("a number from 1 to {max}"), found))
    }

    /// For a key of `[cache]` that 0 turns off.
    pub(super) fn zero_or(
        &self,
        key: &str,
        found: usize,
        min: usize,
        max: usize,
    ) -> Result<(), ConfigError> {
        if found == 0 || (min..=max).contains(&found) {
            return Ok(());
        }
        Err(self.refuse(&["cache", key], &format!("0 or a number from {min} to {max}"), found))
    }

    /// The bytes that `amount` is of `whole`, if that is known.
    pub(super) fn bytes(
        &self,
        key: &[&str],
        amount: Amount,
        whole: Option<u64>,
    ) -> Result<u64, ConfigError> {
        match (amount, whole) {
            (Amount::Bytes(bytes), _) => Ok(bytes.0),
            (Amount::Share(share), Some(whole)) => Ok(share.of(whole)),
            (Amount::Share(_), None) => {
                let expected = "`auto` or a byte size, for the system does not tell its memory";
                Err(self.refuse(key, expected, amount))
            }
        }
    }

    /// The device that computes, with `auto` settled.
    fn device(&self, device: DeviceChoice) -> Result<DeviceChoice, ConfigError> {
        device.resolve().map_err(|DeviceError { expected, found }| {
            let expected = format!("{expected} for `{device}`, or `auto` or `cpu`");
            self.refuse(&["engine", "device"], &expected, found)
        })
    }

    fn model_name(&self, name: &str) -> Result<(), ConfigError> {
        if is_model_name(name) {
            return Ok(());
        }
        Err(self.refuse(&["models", name, "path"], MODEL_NAME, format!("`{name}`")))
    }
}

fn is_model_name(name: &str) -> bool {
    let allowed = |byte: u8| byte.is_ascii_alphanumeric() || b"._-:/".contains(&byte);
    (1..=MODEL_NAME_BYTES_MAX).contains(&name.len()) && name.bytes().all(allowed)
}
