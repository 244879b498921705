//! Logs: who gets which lines, in which form, and the first line that says what this process is.
//! Everything goes to standard error; standard output belongs to results.

use std::io::{self, IsTerminal as _, Write};
use std::sync::LazyLock;

use indicatif::MultiProgress;
use sconce_server::build;
use sconce_server::grpc::notes::{PROMPT_BYTES_LOGGED_MAX, PROMPTS_TARGET};
use sconce_server::serve::ServePlan;
use sconce_server::trace;
use tracing_subscriber::EnvFilter;
use tracing_subscriber::filter::LevelFilter;

use crate::config::{ByteSize, LogFormat, TelemetryConfig};

/// Variables that say which lines are written, the first that is set; then the configuration.
const FILTER_VARIABLES: [&str; 2] = ["SCONCE_LOG", "RUST_LOG"];

/// Progress bars of this process. Log lines are written around them, not through them.
pub(crate) static BARS: LazyLock<MultiProgress> = LazyLock::new(MultiProgress::new);

static VERSION: LazyLock<String> = LazyLock::new(|| match build::commit() {
    Some(commit) => format!("{} ({commit})", build::VERSION),
    None => build::VERSION.to_owned(),
});

/// Version of this build, with the commit if the build was told it in `SCONCE_COMMIT`.
pub(crate) fn version() -> &'static str {
    &VERSION
}

/// Starts logging for the rest of the process, without prompts. `filter` counts where no variable is
/// set.
///
/// # Errors
/// The name of the variable or setting whose filter cannot be read, and why.
pub(crate) fn init(format: LogFormat, filter: &str) -> Result<(), String> {
    init_with(format, filter, false)
}

fn init_with(format: LogFormat, filter: &str, prompts: bool) -> Result<(), String> {
    let variable = FILTER_VARIABLES
        .into_iter()
        .find_map(|name| std::env::var(name).ok().map(|value| (name, value)));
    let (name, filter) = variable.unwrap_or(("telemetry.log", filter.to_owned()));
    let filter = EnvFilter::try_new(&filter)
        .map_err(|error| format!("{name}: expected a log filter such as `info`: {error}"))?;
    // Whatever a filter says, prompts are shown when they are asked for by name and not else.
    let level = if prompts { LevelFilter::DEBUG } else { LevelFilter::OFF };
    let directive = format!("{PROMPTS_TARGET}={level}");
    let filter = filter.add_directive(directive.parse().expect("a target and a level"));
    let builder = tracing_subscriber::fmt().with_env_filter(filter).with_writer(|| AroundBars);
    let human = match format {
        LogFormat::Human => true,
        LogFormat::Json => false,
        LogFormat::Auto => io::stderr().is_terminal(),
    };
    if human {
        builder.with_ansi(io::stderr().is_terminal()).with_target(false).try_init()
    } else {
        builder.json().flatten_event(true).with_current_span(false).try_init()
    }
    .map_err(|error| error.to_string())
}

/// As [`init`], from the configuration of a server.
pub(crate) fn init_server(config: &TelemetryConfig) -> Result<(), String> {
    init_with(config.log_format, &config.log, config.log_prompts)?;
    if config.log_prompts {
        tracing::warn!(
            bytes_max = PROMPT_BYTES_LOGGED_MAX,
            "prompts are logged, as telemetry.log_prompts says: who reads this log reads them"
        );
    }
    Ok(())
}

/// The first line: what this process is and what it may take.
pub(crate) fn announce(plan: &ServePlan) {
    let budget = plan
        .engine
        .memory_budget
        .map_or_else(|| "unlimited".to_owned(), |bytes| ByteSize(bytes).to_string());
    tracing::info!(
        version = build::VERSION,
        commit = build::commit().unwrap_or("unknown"),
        device = %plan.engine.device,
        threads = plan.engine.threads.unwrap_or_else(sconce_models::threads::count),
        precision = %plan.precision,
        memory_budget = budget,
        sequences_max = plan.engine.sequences_max,
        context_length_max = plan.engine.context_length_max,
        cache_device = tier(plan.cache.device),
        cache_host = tier(plan.cache.host),
        cache_disk = tier(plan.cache.disk),
        "sconce starts"
    );
    let collector = trace::ENDPOINT_VARIABLES.into_iter().find(|name| std::env::var(name).is_ok());
    if let Some(variable) = collector.filter(|_| !trace::IS_BUILT) {
        tracing::warn!(variable, "no spans are sent: this build has no feature `otlp`");
    }
}

/// Most bytes of a tier of the cache.
fn tier(bytes: u64) -> String {
    if bytes == u64::MAX { "unlimited".to_owned() } else { ByteSize(bytes).to_string() }
}

/// Standard error, with the progress bars out of the way while a line is written.
struct AroundBars;

impl Write for AroundBars {
    fn write(&mut self, line: &[u8]) -> io::Result<usize> {
        BARS.suspend(|| io::stderr().lock().write_all(line))?;
        Ok(line.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        io::stderr().flush()
    }
}
