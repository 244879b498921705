//! Where settings come from: defaults < file < environment < flags, merged by figment, each value
//! remembering its source. What the settings are is in `mod.rs`.

use std::fmt::Write as _;
use std::path::{Path, PathBuf};

use figment::providers::{Env, Format, Serialized, Toml};
use figment::value::{Dict, Map, Tag, Value};
use figment::{Figment, Metadata, Profile, Provider, Source};

use super::Config;

/// Read where no `--config` is given, if it exists.
const FILE_DEFAULT: &str = "/etc/sconce/config.toml";

/// What names of environment variables begin with; `__` also separates section and key.
const ENV_PREFIX: &str = "SCONCE__";

/// A setting that is wrong.
#[derive(Debug, thiserror::Error)]
pub enum ConfigError {
    /// The file given with `--config`, or the default one, cannot be read.
    #[error("config file {}: {source}", path.display())]
    File {
        /// The file.
        path: PathBuf,
        /// Why.
        source: std::io::Error,
    },
    /// The file is not TOML.
    #[error("config file {}: expected TOML, found\n{error}", path.display())]
    Syntax {
        /// The file.
        path: PathBuf,
        /// What the parser says, with line and column.
        error: String,
    },
    /// A key or section that does not exist.
    #[error("unknown setting `{key}` in {origin}; expected {expected}")]
    Unknown {
        /// The key, with its section.
        key: String,
        /// Where it was set.
        origin: String,
        /// What exists there.
        expected: String,
    },
    /// A value that does not fit its key.
    #[error("setting `{key}` in {origin}: expected {expected}, found {found}")]
    Value {
        /// The key, with its section.
        key: String,
        /// Where it was set.
        origin: String,
        /// What would fit.
        expected: String,
        /// What was there.
        found: String,
    },
}

/// A setting given on the command line.
#[derive(Debug, Clone)]
pub struct Flag {
    /// The flag, such as `--listen`.
    pub name: &'static str,
    /// The setting's path, such as `["server", "listen"]`. A list, since model names have dots.
    pub key: Vec<String>,
    /// Its value.
    pub value: Value,
}

impl Flag {
    /// A flag that sets `section.key`.
    pub fn new(name: &'static str, (section, key): (&str, &str), value: impl Into<Value>) -> Self {
        Self { name, key: vec![section.to_owned(), key.to_owned()], value: value.into() }
    }
}

impl Provider for Flag {
    fn metadata(&self) -> Metadata {
        Metadata::named(format!("flag {}", self.name))
    }

    fn data(&self) -> Result<Map<Profile, Dict>, figment::Error> {
        let mut value = self.value.clone();
        for key in self.key.iter().rev() {
            value = Value::from(Dict::from([(key.clone(), value)]));
        }
        let dict = value.into_dict().expect("a flag's key has at least one part");
        Ok(Profile::Default.collect(dict))
    }
}

/// The layers, merged.
#[derive(Debug)]
pub struct Layers(Figment);

/// One setting and where its value comes from.
#[derive(Debug)]
pub struct Origin {
    /// Section and key.
    pub key: Vec<String>,
    /// Its value.
    pub value: Value,
    /// `default`, or the file, variable or flag.
    pub origin: String,
}

impl Layers {
    /// Stacks all layers. `file` is `--config`.
    ///
    /// # Errors
    /// A file that cannot be read.
    pub fn new(file: Option<&Path>, flags: Vec<Flag>) -> Result<Self, ConfigError> {
        let mut figment = Figment::from(Serialized::defaults(Config::default()));
        if let Some(path) = file.or_else(default_file) {
            let text = std::fs::read_to_string(path)
                .map_err(|source| ConfigError::File { path: path.to_owned(), source })?;
            // Parsed here first, since figment would tell a syntax error without its line.
            if let Err(error) = text.parse::<toml::Table>() {
                let error = error.to_string();
                return Err(ConfigError::Syntax { path: path.to_owned(), error });
            }
            figment = figment.merge(Toml::file_exact(path));
        }
        figment = figment.merge(Env::prefixed(ENV_PREFIX).split("__"));
        for flag in flags {
            figment = figment.merge(flag);
        }
        Ok(Self(figment))
    }

    /// The settings, typed.
    ///
    /// # Errors
    /// An unknown key, or a value of the wrong kind.
    pub fn extract(&self) -> Result<Config, ConfigError> {
        self.0.extract().map_err(|error| self.explain(error))
    }

    /// Every setting with its source, by section and key.
    ///
    /// # Errors
    /// As [`Layers::extract`].
    pub fn origins(&self) -> Result<Vec<Origin>, ConfigError> {
        let tree: Value = self.0.extract().map_err(|error| self.explain(error))?;
        let mut origins = Vec::new();
        self.walk(&mut Vec::new(), &tree, &mut origins);
        Ok(origins)
    }

    /// Where the value of `key` was set.
    pub fn origin_of(&self, key: &[&str]) -> String {
        let all = self.origins().unwrap_or_default();
        all.into_iter()
            .find(|origin| origin.key == key)
            .map_or_else(|| "default".to_owned(), |origin| origin.origin)
    }

    fn walk(&self, key: &mut Vec<String>, value: &Value, origins: &mut Vec<Origin>) {
        if let Value::Dict(_, dict) = value {
            for (name, value) in dict {
                key.push(name.clone());
                self.walk(key, value, origins);
                key.pop();
            }
            return;
        }
        let origin = self.describe_tag(value.tag(), key);
        origins.push(Origin { key: key.clone(), value: value.clone(), origin });
    }

    fn describe_tag(&self, tag: Tag, key: &[String]) -> String {
        self.0
            .get_metadata(tag)
            .map_or_else(|| "default".to_owned(), |metadata| describe(metadata, key))
    }

    /// Says in our words what figment found wrong.
    fn explain(&self, error: figment::Error) -> ConfigError {
        use figment::error::Kind;
        let mut key = error.path.clone();
        let (expected, found) = match &error.kind {
            Kind::UnknownField(name, expected) => {
                if key.last() != Some(name) {
                    key.push(name.clone());
                }
                return ConfigError::Unknown {
                    origin: self.blame(&error, &key),
                    key: key.join("."),
                    expected: quote_list(expected),
                };
            }
            Kind::InvalidType(found, expected) | Kind::InvalidValue(found, expected) => {
                (expected.clone(), found.to_string())
            }
            Kind::InvalidLength(found, expected) => (expected.clone(), format!("{found} items")),
            Kind::UnknownVariant(found, expected) => (quote_list(expected), format!("`{found}`")),
            other => ("a valid value".to_owned(), other.to_string()),
        };
        let origin = self.blame(&error, &key);
        ConfigError::Value { key: key.join("."), origin, expected, found }
    }

    fn blame(&self, error: &figment::Error, key: &[String]) -> String {
        if let Some(metadata) = &error.metadata {
            return describe(metadata, key);
        }
        let parts: Vec<&str> = key.iter().map(String::as_str).collect();
        self.origin_of(&parts)
    }
}

/// The settings as TOML that [`Layers`] reads back to the same settings; with `origin`, each value
/// with its source in a comment.
pub fn to_toml(origins: &[Origin], with_origin: bool) -> String {
    let mut text = String::new();
    let mut section: Option<&str> = None;
    for Origin { key, value, origin } in origins {
        let [name, rest @ ..] = key.as_slice() else { continue };
        if section != Some(name) {
            let gap = if section.is_some() { "\n" } else { "" };
            let _ = writeln!(text, "{gap}[{name}]");
            section = Some(name);
        }
        let key = rest.iter().map(|part| toml_key(part)).collect::<Vec<_>>().join(".");
        let value = toml_value(value);
        let comment = if with_origin { format!("  # {origin}") } else { String::new() };
        let _ = writeln!(text, "{key} = {value}{comment}");
    }
    text
}

fn toml_value(value: &Value) -> String {
    toml::Value::try_from(value).map_or_else(|_| "\"\"".to_owned(), |value| value.to_string())
}

fn toml_key(key: &str) -> String {
    let bare = key.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"_-".contains(&byte));
    if bare { key.to_owned() } else { toml::Value::from(key).to_string() }
}

/// The file that is read where none is given, if it exists.
pub fn default_file<'a>() -> Option<&'a Path> {
    let path = Path::new(FILE_DEFAULT);
    path.exists().then_some(path)
}

fn describe(metadata: &Metadata, key: &[String]) -> String {
    if let Some(Source::File(path)) = &metadata.source {
        return format!("file {}", path.display());
    }
    if metadata.name.starts_with("flag ") {
        return metadata.name.to_string();
    }
    if metadata.name.contains("environment") {
        return format!("environment variable {ENV_PREFIX}{}", key.join("__").to_uppercase());
    }
    "default".to_owned()
}

fn quote_list(names: &[&str]) -> String {
    names.iter().map(|name| format!("`{name}`")).collect::<Vec<_>>().join(", ")
}
