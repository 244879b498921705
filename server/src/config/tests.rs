//! Settings through all their layers, and the table of `docs/OPERATIONS.md` against the structs.

use std::io::Write as _;

use super::machine::Machine;
use super::*;

/// A machine that tells nothing of itself.
const UNKNOWN: Machine = Machine {
    memory: None,
    device_memory: |_| None,
    disk: |_| Err(std::io::ErrorKind::Unsupported.into()),
};

fn file(text: &str) -> tempfile::NamedTempFile {
    let mut file = tempfile::NamedTempFile::new().unwrap();
    file.write_all(text.as_bytes()).unwrap();
    file
}

fn load(text: &str, flags: Vec<Flag>) -> Result<(Config, ServePlan), ConfigError> {
    load_on(&UNKNOWN, text, flags)
}

/// The settings of a file with `text`, and the plan that comes of them on `machine`.
pub(super) fn load_on(
    machine: &Machine,
    text: &str,
    flags: Vec<Flag>,
) -> Result<(Config, ServePlan), ConfigError> {
    let file = file(text);
    let layers = Layers::new(Some(file.path()), flags)?;
    let config = layers.extract()?;
    let plan = config.plan_on(machine, &layers)?;
    Ok((config, plan))
}

fn refused(text: &str) -> String {
    load(text, Vec::new()).expect_err("is refused").to_string()
}

#[test]
fn without_a_file_the_plan_is_the_servers_default_where_the_machine_tells_nothing() {
    let (config, plan) = load("", Vec::new()).unwrap();
    assert_eq!(config, Config::default());
    assert_eq!(plan, ServePlan::default());
}

#[test]
fn a_file_overrides_defaults_and_a_flag_overrides_the_file() {
    let text = "[engine]\nthreads = 3\nsequences_max = 7\nmemory_budget = \"8GiB\"\n\
                [server]\ndrain = \"1m\"\nlisten = \"unix:/tmp/x\"";
    let (_, plan) = load(text, vec![Flag::new("--threads", ("engine", "threads"), 5)]).unwrap();
    assert_eq!(plan.engine.threads, Some(5));
    assert_eq!(plan.engine.sequences_max, 7);
    assert_eq!(plan.engine.memory_budget, Some(8 << 30));
    assert_eq!(plan.drain.drain, std::time::Duration::from_secs(60));
    assert_eq!(plan.listen, ["unix:/tmp/x".parse().unwrap()]);
}

#[test]
fn models_are_a_path_or_a_table_and_their_names_may_have_dots() {
    let text = "[models]\nsmall = \"/m/small.gguf\"\n\
                \"big-1.5\" = { path = \"/m/big\", context_length = 4096, keep_alive = \"5m\" }";
    let flag = Flag {
        name: "--model",
        key: vec!["models".into(), "sim-0.1".into()],
        value: "sim:".into(),
    };
    let (_, plan) = load(text, vec![flag]).unwrap();
    let names: Vec<&str> = plan.models.iter().map(|model| model.name.as_str()).collect();
    assert_eq!(names, ["big-1.5", "sim-0.1", "small"]);
    assert_eq!(plan.models[0].context_length, Some(4096));
    assert_eq!(plan.models[0].keep_alive, Some(std::time::Duration::from_secs(300)));
    assert_eq!(plan.models[2].path, "/m/small.gguf");
}

#[test]
fn a_wrong_setting_is_told_with_key_source_value_and_expectation() {
    for (text, parts) in [
        ("[server]\nport = 1", &["`server.port`", "unknown", "file", "`listen`"][..]),
        ("[sever]\nlisten = \"x\"", &["`sever`", "unknown", "`server`"]),
        ("[server]\ndrain = \"30\"", &["`server.drain`", "\"30\"", "`30s`", "file"]),
        ("[server]\nlisten = [\"here\"]", &["server.listen", "\"here\"", "IP:PORT"]),
        ("[engine]\nthreads = 0", &["`engine.threads`", "0", "above 0"]),
        ("[engine]\nsequences_max = 0", &["`engine.sequences_max`", "1 to 4096", "found 0"]),
        ("[engine]\nsequences_max = \"many\"", &["`engine.sequences_max`", "\"many\""]),
        ("[engine]\nmemory_budget = \"8 apples\"", &["`engine.memory_budget`", "8 apples"]),
        ("[engine]\nmemory_budget = \"150%\"", &["`engine.memory_budget`", "150%", "`100%`"]),
        ("[engine]\nmemory_budget = \"50%\"", &["`engine.memory_budget`", "50%", "byte size"]),
        ("[engine]\ndevice = \"cuda:4096\"", &["`engine.device`", "`cpu`", "`cuda:4096`", "file"]),
        ("[engine]\ndevice = \"tpu\"", &["`engine.device`", "`metal`", "tpu"]),
        ("[models]\n\"a b\" = \"x\"", &["`models.a b.path`", "letters, digits"]),
        ("[models.a]\npaths = \"x\"", &["`models.a.paths`", "unknown", "`path`"]),
        ("[server", &["TOML", "line 1"]),
    ] {
        let message = refused(text);
        for part in parts {
            assert!(message.contains(part), "{text:?}: `{part}` not in: {message}");
        }
    }
}

#[test]
fn a_flag_that_is_wrong_is_named() {
    let flag = Flag::new("--device", ("engine", "device"), "metal");
    let message = load("", vec![flag]).expect_err("is refused").to_string();
    assert!(message.contains("flag --device"), "{message}");
}

#[test]
fn a_device_is_read_settled_and_shown_by_its_name() {
    let (config, plan) = load("", Vec::new()).unwrap();
    assert_eq!(config.engine.device, DeviceChoice::Auto);
    assert_eq!(Ok(plan.engine.device), DeviceChoice::Auto.resolve());
    // A flag is above a file, and shown as it was written.
    let file = file("[engine]\ndevice = \"cuda:4096\"");
    let flag = Flag::new("--device", ("engine", "device"), "cpu");
    let layers = Layers::new(Some(file.path()), vec![flag]).unwrap();
    let plan = layers.extract().unwrap().plan_on(&UNKNOWN, &layers).unwrap();
    assert_eq!(plan.engine.device, DeviceChoice::Cpu);
    assert!(to_toml(&layers.origins().unwrap(), false).contains("device = \"cpu\""));
}

#[test]
fn shown_settings_read_back_to_the_same() {
    let text = "[models]\n\"a.b/c\" = { path = \"sim:\", keep_alive = \"1m\" }\n\
                [cache]\nhost = \"1MiB\"\ndevice = 0\ndirectory = \"/c\"\ndisk = \"7KB\"\npolicy = \"lru\"\n\
                [engine]\nthreads = 2\nmemory_budget = \"1GiB\"\n[telemetry]\nlog = \"a=\\\"b\\\"\"";
    let first = file(text);
    let layers = Layers::new(Some(first.path()), Vec::new()).unwrap();
    let typed = layers.extract().unwrap();
    for with_origin in [false, true] {
        let shown = to_toml(&layers.origins().unwrap(), with_origin);
        let (again, _) = load(&shown, Vec::new()).expect(&shown);
        assert_eq!(again, typed, "{shown}");
    }
    let shown = to_toml(&layers.origins().unwrap(), true);
    assert!(shown.contains("threads = 2  # file "), "{shown}");
    assert!(shown.contains("sequences_max = 64  # default"), "{shown}");
}

/// Rows of the settings table: key and default, as they stand between backquotes.
fn documented() -> BTreeMap<String, String> {
    let path = concat!(env!("CARGO_MANIFEST_DIR"), "/../docs/OPERATIONS.md");
    let text = std::fs::read_to_string(path).expect("the page exists");
    text.lines()
        .skip_while(|line| !line.starts_with("| setting |"))
        .take_while(|line| line.starts_with('|'))
        .filter_map(|line| {
            let mut cells = line.strip_prefix("| `")?.splitn(3, '|');
            let key = cells.next()?.trim().trim_matches('`').to_owned();
            let default = cells.next()?.trim().trim_matches('`').to_owned();
            Some((key, default))
        })
        .collect()
}

/// Keys of `table` and the tables in it, with their values as TOML.
fn flatten(above: &str, table: &toml::Table, flat: &mut BTreeMap<String, String>) {
    for (key, value) in table {
        match value {
            toml::Value::Table(below) => flatten(&format!("{above}{key}."), below, flat),
            value => _ = flat.insert(format!("{above}{key}"), value.to_string()),
        }
    }
}

#[test]
fn every_setting_is_documented_with_its_default() {
    let layers = Layers::new(Some(file("").path()), Vec::new()).unwrap();
    let shown = to_toml(&layers.origins().unwrap(), false);
    let table: toml::Table = shown.parse().unwrap();
    let mut expected: BTreeMap<String, String> = BTreeMap::new();
    flatten("", &table, &mut expected);
    // A model's keys have no place in the defaults, since there is no default model.
    for (key, default) in [("path", ""), ("context_length", "\"auto\""), ("keep_alive", "\"auto\"")]
    {
        expected.insert(format!("models.NAME.{key}"), default.to_owned());
    }
    assert_eq!(documented(), expected);
}
