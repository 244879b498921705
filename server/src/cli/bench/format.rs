//! In which form the results of a measurement are written.

use serde_json::{Map, Value};

/// Forms of a result.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub(super) enum Format {
    /// Aligned columns, for people
    Table,
    /// One JSON document
    Json,
    /// A JSON object on a line of its own for each result
    Jsonl,
}

/// Which form is wanted.
#[derive(Debug, Clone, Copy, clap::Args)]
pub(super) struct FormatArgs {
    /// How results are written
    #[arg(long, short = 'o', value_enum, default_value = "table", value_name = "FORMAT")]
    output: Format,
    /// Print JSON: --output json
    #[arg(long, conflicts_with = "output")]
    json: bool,
}

impl FormatArgs {
    /// The form that was asked for.
    pub(super) fn format(self) -> Format {
        if self.json { Format::Json } else { self.output }
    }
}

/// The fields of an object of JSON; of anything else, one field.
pub(super) fn object(value: Value) -> Map<String, Value> {
    match value {
        Value::Object(fields) => fields,
        other => Map::from_iter([("value".to_owned(), other)]),
    }
}
