//! A model that is loaded at start: `models.NAME = "PATH"`, or a table with more to say.

use std::fmt;

use serde::de::value::MapAccessDeserializer;
use serde::de::{MapAccess, Visitor};
use serde::{Deserialize, Deserializer, Serialize};

use super::value::{Auto, Span};

/// `[models.NAME]`
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct ModelConfig {
    /// A directory, a `.gguf` file, or `sim:`.
    pub path: String,
    /// Most tokens of prompt and completion together.
    pub context_length: Auto<usize>,
    /// Unloads the model after it was idle this long; `auto` for never.
    pub keep_alive: Auto<Span>,
}

/// The table form. Apart from [`ModelConfig`], since that is also read from plain text.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Table {
    path: String,
    #[serde(default)]
    context_length: Auto<usize>,
    #[serde(default)]
    keep_alive: Auto<Span>,
}

impl<'de> Deserialize<'de> for ModelConfig {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_any(TextOrTable)
    }
}

struct TextOrTable;

impl<'de> Visitor<'de> for TextOrTable {
    type Value = ModelConfig;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a path, or a table with `path`")
    }

    fn visit_str<E: serde::de::Error>(self, path: &str) -> Result<ModelConfig, E> {
        let path = path.to_owned();
        Ok(ModelConfig { path, context_length: Auto::Auto, keep_alive: Auto::Auto })
    }

    fn visit_map<A: MapAccess<'de>>(self, map: A) -> Result<ModelConfig, A::Error> {
        let Table { path, context_length, keep_alive } =
            Table::deserialize(MapAccessDeserializer::new(map))?;
        Ok(ModelConfig { path, context_length, keep_alive })
    }
}
