//! `sconce inspect`: what is in a checkpoint and what memory it needs, read from its headers alone.

use sconce_models::checkpoint::describe::{FormatShare, WeightSummary};
use sconce_models::checkpoint::{Checkpoint, Description};
use sconce_models::{Error, LoadOptions, MemoryEstimate, estimate};
use serde_json::{Value, json};

use super::error::CliError;
use super::output;

/// Arguments of `sconce inspect`.
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// Checkpoint: a directory or a .gguf file
    path: String,
    /// Tell the memory that this many tokens need [default: what the model was trained for]
    #[arg(long, value_name = "TOKENS")]
    context_length: Option<usize>,
    /// List the tensors
    #[arg(long)]
    tensors: bool,
    /// List the metadata
    #[arg(long)]
    metadata: bool,
    /// Print JSON; tensors and metadata as far as asked for
    #[arg(long)]
    json: bool,
}

/// Runs `sconce inspect`.
pub(crate) fn run(args: Args) -> Result<(), CliError> {
    super::log_quietly()?;
    let usage = |error: Error| CliError::Usage(error.to_string());
    let description = Checkpoint::open(&args.path).and_then(|it| it.describe()).map_err(usage)?;
    let options = LoadOptions { context_length: args.context_length, ..LoadOptions::default() };
    let memory = estimate(&args.path, &options);
    // A checkpoint that cannot be loaded can still be looked at; a wrong option is the caller's.
    if let (Some(_), Err(error @ Error::Option { .. })) = (args.context_length, &memory) {
        return Err(CliError::Usage(error.to_string()));
    }
    if args.json {
        return output::json(&to_json(&args, &description, &memory));
    }
    print(&args, &description, &memory)
}

fn print(
    args: &Args,
    description: &Description,
    memory: &Result<MemoryEstimate, Error>,
) -> Result<(), CliError> {
    output::line(format_args!(
        "{}: {}, {}, {:.1} M parameters, {} on disk",
        args.path,
        description.format,
        description.architecture,
        description.parameters as f64 / 1e6,
        output::bytes(description.bytes),
    ))?;
    let rows: Vec<Vec<String>> = description.formats.iter().map(format_row).collect();
    output::line("")?;
    output::write(&output::table(&["type", "tensors", "elements", "bytes"], &[1, 2, 3], &rows))?;
    output::line("")?;
    match memory {
        Ok(memory) => output::write(&memory_text(memory))?,
        Err(error) => output::line(format_args!("memory: cannot be loaded: {error}"))?,
    }
    if args.metadata {
        output::line("")?;
        let rows: Vec<Vec<String>> = description
            .metadata
            .iter()
            .map(|(key, value)| vec![key.clone(), value.clone()])
            .collect();
        output::write(&output::table(&["key", "value"], &[], &rows))?;
    }
    if args.tensors {
        output::line("")?;
        let rows: Vec<Vec<String>> = description.weights.iter().map(weight_row).collect();
        let header = ["tensor", "type", "shape", "bytes", "file", "name in file"];
        output::write(&output::table(&header, &[3], &rows))?;
    }
    Ok(())
}

fn memory_text(memory: &MemoryEstimate) -> String {
    let fixed = memory.weights_bytes + memory.workspace_bytes;
    format!(
        "memory with a context of {} tokens\n  \
         weights       {}\n  \
         workspace     {}\n  \
         state         {} a token, {} a sequence of that length\n  \
         one sequence  {} in all\n",
        memory.context_length,
        output::bytes(memory.weights_bytes),
        output::bytes(memory.workspace_bytes),
        output::bytes(memory.state_bytes_per_token),
        output::bytes(memory.state_bytes_at_context),
        output::bytes(fixed + memory.state_bytes_at_context),
    )
}

fn format_row(share: &FormatShare) -> Vec<String> {
    vec![
        share.format.clone(),
        share.weights.to_string(),
        share.elements.to_string(),
        output::bytes(share.bytes),
    ]
}

fn weight_row(weight: &WeightSummary) -> Vec<String> {
    let shape: Vec<String> = weight.shape.iter().map(ToString::to_string).collect();
    vec![
        weight.name.clone(),
        weight.format.clone(),
        format!("[{}]", shape.join(", ")),
        output::bytes(weight.bytes),
        weight.file.clone(),
        weight.name_in_file.clone(),
    ]
}

fn to_json(
    args: &Args,
    description: &Description,
    memory: &Result<MemoryEstimate, Error>,
) -> Value {
    let formats = description.formats.iter().map(|share| {
        json!({
            "type": share.format,
            "tensors": share.weights,
            "elements": share.elements,
            "bytes": share.bytes,
        })
    });
    let mut value = json!({
        "path": args.path,
        "format": description.format,
        "architecture": description.architecture,
        "parameters": description.parameters,
        "bytes": description.bytes,
        "types": formats.collect::<Vec<_>>(),
    });
    match memory {
        Ok(memory) => {
            value["memory"] = json!({
                "context_length": memory.context_length,
                "weights_bytes": memory.weights_bytes,
                "workspace_bytes": memory.workspace_bytes,
                "state_bytes_per_token": memory.state_bytes_per_token,
                "state_bytes_at_context": memory.state_bytes_at_context,
            });
        }
        Err(error) => value["load_error"] = json!(error.to_string()),
    }
    if args.metadata {
        let entries = description.metadata.iter().cloned();
        value["metadata"] = Value::Object(entries.map(|(key, text)| (key, text.into())).collect());
    }
    if args.tensors {
        value["tensors"] = description.weights.iter().map(weight_json).collect();
    }
    value
}

fn weight_json(weight: &WeightSummary) -> Value {
    json!({
        "name": weight.name,
        "name_in_file": weight.name_in_file,
        "type": weight.format,
        "shape": weight.shape,
        "bytes": weight.bytes,
        "reordered": weight.reordered,
        "file": weight.file,
    })
}
